"""Small caches of features drawn from a normal distribution, whose mean depends on the class."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.caches import write_made_up
from tests.head.sweep.sweeping import SPEC, run_sweep
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.head.data.rows import Rows

DIM, CLASSES = 12, ("covid", "normal", "pneumonia")


@pytest.fixture(scope="session")
def rows() -> tuple[Rows, Rows]:
    """Training and validation rows of three classes, unevenly many of each; 53 do not fill whole batches."""
    return _rows(53, seed=1), _rows(29, seed=2)


def _rows(count: int, seed: int) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(torch.tensor([0.2, 0.3, 0.5]), count, replacement=True, generator=generator)
    labels[:3] = torch.arange(3)
    means = torch.randn(3, DIM, generator=torch.Generator().manual_seed(7))
    return Rows(means[labels] + torch.randn(count, DIM, generator=generator), labels)


@pytest.fixture
def make_cache(tmp_path: Path) -> Callable[..., FeatureCache]:
    return cache_maker(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with the finished sweep ``s`` of :data:`SPEC`."""
    folder = tmp_path_factory.mktemp("finished")
    run_sweep(cache_maker(folder)(), SPEC, runs=folder / "runs", name="s")
    return folder / "runs"


@pytest.fixture
def swept(finished: Path, tmp_path: Path) -> Path:
    """A copy of it; the cache of :func:`make_cache` has the same content."""
    return Path(shutil.copytree(finished, tmp_path / "runs", symlinks=True))


def cache_maker(folder: Path) -> Callable[..., FeatureCache]:
    """Return a function that writes a cache of 90 images: 54 train, 18 valid, 18 test, or no split."""

    def make(
        name: str = "features.h5", *, seed: int = 0, divided: bool = True, features: np.ndarray | None = None
    ) -> FeatureCache:
        count = 90
        generator = np.random.default_rng(seed)
        label = np.arange(count, dtype=np.int32) % 3
        if features is None:
            features = np.random.default_rng(7).normal(size=(3, DIM))[label] + generator.normal(size=(count, DIM))
        split = np.repeat([0, 1, 2], [54, 18, 18]).astype(np.uint8) if divided else np.full(count, 255, np.uint8)
        columns = {
            "label": label,
            "split": split,
            "path": [f"{number:03d}.png" for number in range(count)],
            "group": [f"patient {number}" for number in range(count)],
        }
        return write_made_up(folder / name, features.astype(np.float32), columns, CLASSES)

    return make
