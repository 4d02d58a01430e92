"""The looks of the pages that people read: pictures of them, compared with those in this folder. All show drawings.

``make looks`` takes new pictures. Of a page that looks different, build/looks has the new picture and the difference.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageFilter
from PIL.PngImagePlugin import PngInfo

from tests.conftest import MadeOnce
from tests.serve.conftest import serving
from tests.serve.page.conftest import CHROMIUM, chromium
from xfeat.serve.inference.predictor import Predictor

pytestmark = [pytest.mark.slow, pytest.mark.looks]

ROOT = Path(__file__).parents[2]
PICTURES, FAILED = Path(__file__).parent, ROOT / "build" / "looks"
TAKES_NEW = "XFEAT_LOOKS" in os.environ
COMMANDS = """
python data/draw_phantoms.py --out elsewhere --seed 1
xfeat featurize data --backbone efficientnet-lite0
xfeat audit
xhead train --name first --positive opacity
xhead train --name second --seed 1 --epochs 3
xhead eval runs/first elsewhere/test --name external
xhead crossval --name crossval --folds 3 --positive opacity
xhead compare runs/first runs/second --html compare.html
xexport onnx runs/first
"""
PAGES = {
    "report": "runs/first/report.html",
    "external": "runs/external/report.html",
    "crossval": "runs/crossval/report.html",
    "compare": "compare.html",
    "audit": "features.audit.html",
    "page": "model.onnx",
    "heatmaps": "model.onnx",
}
LOOKS = [(name, width, False) for name in PAGES for width in (1280, 390) if (name, width) != ("heatmaps", 390)]
LOOKS += [("compare", 1280, True), ("heatmaps", 390, True)]
IMAGES = ("clear/p486-1.jpg", "opacity/p271-1.jpg")

# What differs from run to run, from version to version, or from machine to machine.
CHANGING = {
    r"\b\d{4}-\d\d-\d\d([T ]\d\d:[\d:+.]+)?": "2026-01-31",
    r"\b\d\d:\d\d:\d\d[\d:+.]*": "",
    r"\b\d+\.\d+\.\d+[^\s,;)]*": "1.2.3",
    r"\b[0-9a-f]{16}\b": "0123456789abcdef",
}
MASK = """((changing) => {
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    let text = texts.currentNode.data;
    for (const [pattern, instead] of changing) text = text.replace(new RegExp(pattern, 'g'), instead);
    if (text !== texts.currentNode.data) texts.currentNode.data = text;
  }
  for (const image of document.images) image.loading = 'eager';
  return new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(() => drawn())));
})"""
SHOWN = "[...document.images].every((image) => image.complete)"
# Other fonts have other widths, and break lines elsewhere.
FONTS = """(() => {
  const pen = new OffscreenCanvas(1, 1).getContext('2d');
  return ['system-ui', 'sans-serif', 'monospace'].map((font) => {
    pen.font = `100px ${font}`;
    return pen.measureText('Accuracy 0.123, sensitivity').width.toFixed(1);
  }).join(' ');
})()"""
# Pictures have few colours, which keeps them small, and versions of Chromium draw letters a little differently. So a
# pixel counts if it is still different after blurring.
BLUR_PIXELS, LEVELS, SHARE = 2, 40, 0.0002


@pytest.fixture(scope="module")
def project(made_once: MadeOnce) -> Path:
    """Return a folder in which :data:`COMMANDS` have run beside the drawings."""

    def make(folder: Path) -> None:
        shutil.copytree(ROOT / "data", folder / "data")
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        for command in COMMANDS.strip().splitlines():
            done = subprocess.run(
                command.split(),
                cwd=folder,
                env={**os.environ, "PATH": path},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"

    return made_once("looks", make)


@pytest.fixture(scope="module")
def browse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Return a function that runs a coroutine function with a browser on an address."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with chromium(tmp_path_factory.mktemp("profile")) as drive:
        yield drive


@contextlib.contextmanager
def address_of(page: Path) -> Iterator[str]:
    if page.suffix == ".html":
        yield page.as_uri()
    else:
        with serving(Predictor.open(page, device="cpu")) as client:
            yield str(client.base_url)


def difference_of(old: Image.Image, new: Image.Image) -> tuple[float, Image.Image]:
    """Return the share of pixels that look different, and the new picture with them in red."""
    size = max(old.width, new.width), max(old.height, new.height)
    blurred = []
    for picture, around in ((old, "black"), (new, "white")):
        blurred.append(Image.new("RGB", size, around))
        blurred[-1].paste(picture.convert("RGB").filter(ImageFilter.GaussianBlur(BLUR_PIXELS)))
    marked = np.asarray(ImageChops.difference(*blurred)).max(axis=2) > LEVELS
    shown = np.asarray(blurred[1]) // 2 + 128
    shown[marked] = (255, 0, 0)
    return float(marked.mean()), Image.fromarray(shown)


def in_few_colours(picture: Image.Image) -> Image.Image:
    """Return the picture with a palette that is small and makes next to no difference."""
    for colours in (16, 24, 32, 48, 64, 128, 256):
        small = picture.quantize(colours, kmeans=2, dither=Image.Dither.NONE)
        if difference_of(small, picture)[0] < SHARE / 4:
            break
    return small


@pytest.mark.parametrize(("name", "width", "dark"), LOOKS)
def test_a_page_looks_as_in_its_picture(
    name: str, width: int, dark: bool, project: Path, browse: Any, tmp_path: Path
) -> None:
    fonts = []

    async def visit(browser: Any) -> None:
        await browser.look(width=width, height=900, dark=dark)
        if PAGES[name].endswith(".onnx"):
            await browser.loaded()
            await browser.choose(*(project / "data" / "test" / image for image in IMAGES))
            await browser.until_status(f"{len(IMAGES)} images:")
            if name == "heatmaps":
                await browser.press("h")
        changing = {re.escape(str(project)): "/home/me", **CHANGING}
        await browser.value(f"{MASK}({json.dumps(list(changing.items()))})")
        await browser.until(SHOWN)
        fonts.append(await browser.value(FONTS))
        await browser.picture(tmp_path / "new.png")
        assert await browser.value("document.documentElement.scrollWidth") <= width
        assert browser.complaints == []

    with address_of(project / PAGES[name]) as address:
        browse(address, visit)
    picture = PICTURES / f"{name}-{width}{'-dark' if dark else ''}.png"
    new = Image.open(tmp_path / "new.png").convert("RGB")
    old = Image.open(picture) if picture.exists() else Image.new("RGB", (1, 1))
    has_same_fonts = old.info.get("fonts") == fonts[0]
    share, difference = difference_of(old, new)
    if TAKES_NEW:
        if share > SHARE or not has_same_fonts:
            described = PngInfo()
            described.add_text("fonts", fonts[0])
            in_few_colours(new).save(picture, optimize=True, pnginfo=described)
        return
    if not has_same_fonts and picture.exists():
        pytest.skip("the pictures show other fonts than this machine has: make looks takes pictures with these")
    if share > SHARE:
        FAILED.mkdir(parents=True, exist_ok=True)
        new.save(FAILED / picture.name)
        difference.save(FAILED / f"{picture.stem}-difference.png")
        pytest.fail(
            f"{share:.2%} of {name} look different at {width} pixels: see {FAILED / picture.stem}-difference.png; "
            "if the new look is right, run make looks and commit tests/looks"
        )
