"""A small project on disk: drawn images, a Lite0 with random weights at 64 pixels, a run, and its export."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image, ImageDraw

from tests.caches import edit_cache
from tests.conftest import MadeOnce
from tests.edited_runs import edit_run
from xfeat.export.build.assemble import detach_resize
from xfeat.export.cli import main as export_main
from xfeat.featurize.cli import main as featurize_main
from xfeat.featurize.specs import PreprocessSpec
from xfeat.head.cli import main as head_main
from xfeat.head.runs.reader import Run, open_run

SIDE = 64
COUNTS = {"train": 12, "valid": 6, "test": 6}


@dataclass(frozen=True)
class Project:
    """A folder with the outputs of the commands."""

    folder: Path
    side: int = SIDE

    @property
    def run(self) -> Run:
        return open_run(self.folder / "runs" / "first")

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def model(self) -> Path:
        return self.folder / "model.onnx"

    @property
    def core(self) -> Path:
        return self.folder / "model.core.onnx"

    @property
    def certificate(self) -> Path:
        return self.folder / "model.certificate.json"


def invoke(command: object, *args: object) -> Result:
    return CliRunner().invoke(command, [str(arg) for arg in args], catch_exceptions=False)


def draw(kind: str, rng: np.random.Generator) -> Image.Image:
    """Draw a disc or a bar on a noisy background, in a random size."""
    width, height = (int(n) for n in rng.integers(70, 130, 2))
    background = rng.integers(20, 90, (height, width), dtype=np.uint8)
    image = Image.fromarray(background)
    level = int(rng.integers(150, 250))
    shape = (width // 4, height // 4, 3 * width // 4, 3 * height // 4)
    if kind == "disc":
        ImageDraw.Draw(image).ellipse(shape, fill=level)
    else:
        ImageDraw.Draw(image).rectangle((width // 2 - 6, 0, width // 2 + 6, height), fill=level)
    return image


def random_weights(file: Path, images: torch.Tensor) -> None:
    """Save a Lite0 with random weights and BatchNorm statistics from images: otherwise its activations vanish."""
    from efficientnet_lite_pytorch import EfficientNet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = EfficientNet.from_name("efficientnet-lite0", image_size=SIDE)
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
        with torch.no_grad():
            for _ in range(3):
                model(images)
    torch.save(model.state_dict(), file)


@pytest.fixture
def xexport() -> Callable[..., Result]:
    """The command, in this process."""
    return partial(invoke, export_main)


def draw_images(data: Path, counts: dict[str, int]) -> torch.Tensor:
    """Draw ``counts`` images a class in each split, and return the first 16 as a network sees them."""
    rng = np.random.default_rng(5)
    arrays = []
    for split, count in counts.items():
        for kind in ("bar", "disc"):
            target = data / split / kind
            target.mkdir(parents=True)
            for number in range(count):
                image = draw(kind, rng)
                image.save(target / f"{number}.png")
                arrays.append(np.asarray(image.resize((SIDE, SIDE)).convert("RGB")))
    return torch.from_numpy(np.stack(arrays[:16])).permute(0, 3, 1, 2).float() / 127.5 - 1


def make_project(folder: Path, counts: dict[str, int] = COUNTS) -> None:
    """Draw images, and run the commands up to the exported model."""
    random_weights(folder / "weights.pth", draw_images(folder / "data", counts))
    done = invoke(
        featurize_main,
        *("featurize", folder / "data", "-o", folder / "features.h5", "--backbone", "efficientnet-lite0"),
        *("--weights", folder / "weights.pth", "--size", SIDE, "--engine", "torch"),
    )
    assert done.exit_code == 0, done.output
    done = invoke(
        head_main, "train", "--features", folder / "features.h5", "--runs", folder / "runs", "--name", "first"
    )
    assert done.exit_code == 0, done.output
    done = invoke(export_main, "onnx", folder / "runs" / "first", "-o", folder / "model.onnx")
    assert done.exit_code == 0, done.output


@pytest.fixture(scope="session")
def exported(made_once: MadeOnce) -> Project:
    """Images, cache, a run and its model, made once a test run: to be read, and copied where a test changes files."""
    return Project(made_once("project", make_project))


@pytest.fixture(scope="session")
def quantized(exported: Project, made_once: MadeOnce) -> tuple[Path, dict[str, Any]]:
    """An INT8 model that any loss is allowed to, since random weights promise nothing; and what its command said."""

    def make(folder: Path) -> None:
        done = invoke(
            export_main,
            *("quantize", exported.model, "--run", exported.run.folder, "-o", folder / "m.int8.onnx"),
            *("--gate", "100", "--json"),
        )
        assert done.exit_code == 0, done.output
        (folder / "said.json").write_text(done.stdout)

    folder = made_once("int8", make)
    return folder / "m.int8.onnx", json.loads((folder / "said.json").read_text())


@pytest.fixture(scope="session")
def traced(exported: Project) -> onnx.ModelProto:
    """The traced model, from the exported file, to save the ten seconds of tracing."""
    return detach_resize(onnx.load(exported.model), PreprocessSpec(size=exported.side))


@pytest.fixture(scope="session")
def pixels() -> np.ndarray:
    """Noise uint8 (8, 64, 64, 3), with another mean colour per image."""
    rng = np.random.default_rng(3)
    colours = rng.integers(0, 256, (8, 1, 1, 3), dtype=np.uint8) // 2
    return colours + rng.integers(0, 128, (8, 64, 64, 3), dtype=np.uint8)


@pytest.fixture
def copied(exported: Project, tmp_path: Path) -> Project:
    """A copy of the exported project that a test may damage; its run and cache do not know the original."""
    shutil.copytree(exported.folder, tmp_path / "copy")
    facts = tmp_path / "copy" / "runs" / "first" / "run.json"
    facts.write_text(facts.read_text().replace(str(exported.folder), str(tmp_path / "copy")))
    edit_run(facts.parent)
    edit_cache(tmp_path / "copy" / "features.h5", written_in=str(tmp_path / "copy"))
    return Project(tmp_path / "copy")


@pytest.fixture
def quick_trace(traced: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let exports of the same weights skip tracing."""
    monkeypatch.setattr("xfeat.export.export.trace", lambda model, side: traced)
