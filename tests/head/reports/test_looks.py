"""The pages of a run, an evaluation, a cross-validation, a comparison and an audit, as a browser shows them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from tests.caches import extra_column, write_made_up
from tests.head.conftest import cloud
from tests.serve.page.conftest import browse as browse  # a fixture
from tests.serve.page.test_page_access import CHECK
from tests.serve.page.test_page_access import axe as axe  # a fixture
from xfeat.featurize.cli import main as xfeat
from xfeat.head.cli import main as xhead

pytestmark = pytest.mark.slow

HOSPITALS = ("Bergen", "Leuven, University Hospital", "Milano")
LONG = "nodule of the left lower lobe, 5 % of 20 mm or more"
TITLES = {
    "run": f"{LONG[:21]}…{LONG[-10:]} against normal, 80 test images, 40 patients",
    "eval": f"{LONG[:21]}…{LONG[-10:]} against normal on 240 images of elsewhere, 120 patients",
    "crossval": f"{LONG[:21]}…{LONG[-10:]} against normal, 240 images, 120 patients, 3 folds",
    "comparison": f"{LONG[:21]}…{LONG[-10:]} against normal, 80 test images, 40 patients, 2 classifiers compared",
    "audit": f"{LONG[:21]}…{LONG[-10:]} against normal, 240 images, 120 patients",
}
# Texts in which a number, its unit or an interval is on two lines.
BROKEN = r"""[...(function* () {
  const found = /[−+]?\d+(\.\d+)*(\s(to|±)\s[−+]?\d+(\.\d+)*)*\s(%|[a-z]+)|\d+(\.\d+)*\s(%\s)?to\s[−+]?\d+(\.\d+)*|[≥×±]\s\d+(\.\d+)*/g;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode()); ) {
    if (node.parentElement.closest("svg, bdi, code, script, style")) continue;
    for (const match of node.data.matchAll(found)) {
      const range = document.createRange();
      range.setStart(node, match.index);
      range.setEnd(node, match.index + match[0].length);
      const lines = new Set([...range.getClientRects()].map((each) => Math.round(each.bottom)));
      if (lines.size > 1) yield match[0];
    }
  }
})()]"""  # noqa: E501
# Texts and lines of drawings that are hardly lighter or darker than the card below them; cells have their own ground.
FAINT = r"""(() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\d.]+/g).slice(0, 3).map((v) => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ratio = (a, b) => (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  const card = light(getComputedStyle(document.querySelector("section:has(svg)")).backgroundColor);
  const ground = (text) => [...text.closest("svg").querySelectorAll("image")].some((image) => {
    const [cell, all] = [text.getBoundingClientRect(), image.getBoundingClientRect()];
    return cell.left > all.left && cell.right < all.right && cell.top > all.top && cell.bottom < all.bottom;
  });
  const [cells, texts] = [true, false].map((inside) => [...document.querySelectorAll("svg text")].filter((text) => ground(text) === inside));
  const lines = [...document.querySelectorAll("svg path, svg use")].filter((each) => /stroke: #/.test(each.getAttribute("style")) && !/opacity: 0/.test(each.getAttribute("style")));
  return {
    seen: [texts.length, lines.length], cells: cells.length, whiteOrBlack: cells.filter((each) => !each.style.fill).length,
    faint: [
      ...texts.filter((each) => ratio(light(getComputedStyle(each).fill), card) < 4.5).map((each) => each.textContent),
      ...lines.filter((each) => ratio(light(getComputedStyle(each).stroke), card) < 3).map((each) => each.getAttribute("style")),
    ],
  };
})()"""  # noqa: E501


def run(command: Any, *arguments: object) -> None:
    outcome = CliRunner().invoke(command, [str(each) for each in arguments], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The five pages by name: 120 patients with two images each, from three hospitals."""
    folder = tmp_path_factory.mktemp("looks")
    patient = np.arange(240) // 2
    columns: dict[str, Any] = {
        "label": patient % 2,
        "split": np.array([0, 0, 1, 2, 2, 0])[patient % 6],
        "path": [f"scan {row} of 240.png" for row in range(240)],
        "group": [f"p{number}" for number in patient],
    }
    extra = {
        "hospital": extra_column("category", [HOSPITALS[number % 3] for number in patient]),
        "age": extra_column("number", [20 + int(n) % 70 for n in patient]),
    }
    for seed, name in enumerate(("here", "elsewhere")):
        rows = cloud(columns["label"], separation=0.4, seed=seed)
        root = folder / name
        write_made_up(folder / f"{name}.h5", rows, columns, (LONG, "normal"), data_root=root, extra=extra)
    here = ("--features", folder / "here.h5", "--runs", folder / "runs", "--epochs", 4, "--lr", 0.02)
    run(xfeat, "audit", folder / "here.h5")
    run(xhead, "train", *here, "--name", "first", "--hidden", "8", "--positive", LONG)
    run(xhead, "train", *here, "--name", "second", "--hidden", "linear")
    run(xhead, "eval", folder / "runs" / "first", folder / "elsewhere.h5", "--name", "abroad")
    options = ("--folds", 3, "--hidden", 8, "--leave-out", "hospital", "--baselines")
    run(xhead, "crossval", *here, *options, "--name", "cv")
    run(xhead, "compare", "--runs", folder / "runs", "--html", folder / "compare.html")
    return {
        "run": folder / "runs" / "first" / "report.html",
        "eval": folder / "runs" / "abroad" / "report.html",
        "crossval": folder / "runs" / "cv" / "report.html",
        "comparison": folder / "compare.html",
        "audit": folder / "here.audit.html",
    }


@pytest.mark.parametrize("name", TITLES)
def test_a_page_is_readable_light_and_dark_on_a_desktop_and_a_phone(
    pages: dict[str, Path], name: str, browse: Callable[..., None], axe: str
) -> None:
    async def visit(browser: Any) -> None:
        assert (await browser.text("h1")).replace("\N{NO-BREAK SPACE}", " ") == TITLES[name]
        await browser.value(f"{axe};0")
        await browser.value("document.querySelectorAll('details').forEach((each) => { each.open = true })")
        for width in (1280, 390):
            for dark in (False, True):
                await browser.look(width=width, dark=dark)
                look = (name, width, "dark" if dark else "light")
                found = await browser.value(CHECK)
                assert found["passes"] > 20, look
                assert found["violations"] == [], look
                assert await browser.value("document.documentElement.scrollWidth") <= width, look
                assert await browser.value(BROKEN) == [], look
                if name != "audit":
                    drawn = await browser.value(FAINT)
                    assert min(drawn["seen"]) > 20, look
                    assert drawn["faint"] == [], look
                    assert drawn["whiteOrBlack"] == 0, look
                    assert (drawn["cells"] > 0) == (name != "comparison"), look
                if shots := os.environ.get("XFEAT_SHOTS"):
                    await browser.picture(Path(shots) / f"{'-'.join(map(str, look))}.png")
        looks = "(each) => [getComputedStyle(each).color, getComputedStyle(each).backgroundColor]"
        grounds = f"[...document.querySelectorAll('body, section, h1')].map({looks})"
        await browser.call("Emulation.setEmulatedMedia", media="print")
        printed = await browser.value(grounds)
        scheme = [{"name": "prefers-color-scheme", "value": "dark"}]
        await browser.call("Emulation.setEmulatedMedia", media="print", features=scheme)
        assert await browser.value(grounds) == printed  # of a dark screen, too, the paper is white

    browse(pages[name].as_uri(), visit)


def test_what_is_long_is_folded_and_baselines_are_apart(pages: dict[str, Path], browse: Callable[..., None]) -> None:
    async def visit(browser: Any) -> None:
        assert await browser.value(
            "[...document.querySelectorAll('details')].map((each) => [each.open, each.firstElementChild.innerText])"
        ) == [[False, "each fold"]]
        tables = "[...document.querySelectorAll('section')].filter((s) => s.innerText.includes('logistic regression'))"
        assert await browser.value(f"{tables}.map((s) => s.querySelector('h2').innerText)") == [
            "Baselines on the same folds"
        ]

    browse(pages["crossval"].as_uri(), visit)


def test_a_comparison_says_against_what_has_a_roc_and_is_sorted_by_its_headings(
    pages: dict[str, Path], browse: Callable[..., None]
) -> None:
    async def visit(browser: Any) -> None:
        names = "[...document.querySelectorAll('.sortable td:first-child')].map((cell) => cell.innerText)"
        heads = (
            "[...document.querySelectorAll('.sortable th')].map((cell) => cell.innerText.replaceAll('\\u00a0', ' '))"
        )
        before = await browser.value(names)
        assert sorted(before) == ["first", "second"]
        last = (await browser.value(heads))[-4:]
        against = f"difference from {before[0]}, points", "its 95 % interval", f"p, McNemar against {before[0]}"
        assert last == [*against, "verdict"]
        labels = await browser.value("[...document.querySelectorAll('svg')].map((each) => each.ariaLabel)")
        assert labels[0] == "ROC curve of each run"
        await browser.value("document.querySelector('.sortable th button').focus()")
        for order in (["second", "first"], ["first", "second"]):  # by the name, and the other way round
            await browser.press("Enter")
            assert await browser.value(names) == order

    browse(pages["comparison"].as_uri(), visit)
