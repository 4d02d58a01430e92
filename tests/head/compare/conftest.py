"""Small caches of features drawn from a normal distribution, whose mean depends on the class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.caches import write_made_up
from xfeat.featurize.cache.reader import FeatureCache

DIM, CLASSES = 12, ("covid", "normal", "pneumonia")


@pytest.fixture(scope="session")
def write_clouds() -> Callable[..., FeatureCache]:
    """Return a function that writes a cache of 150 images: 90 train, 30 valid, 30 test."""

    def write(file: Path, *, seed: int = 0, patients: bool = False, test: bool = True) -> FeatureCache:
        count = 150
        generator = np.random.default_rng(seed)
        label = np.arange(count, dtype=np.int32) % 3
        features = np.random.default_rng(7).normal(size=(3, DIM))[label] + generator.normal(size=(count, DIM))
        split = np.repeat([0, 1, 2 if test else 0], [90, 30, 30]).astype(np.uint8)
        columns = {
            "label": label,
            "split": split,
            "path": [f"{number:03d}.png" for number in range(count)],
            "group": [f"patient {number // 3}" if patients else "" for number in range(count)],
        }
        return write_made_up(file, features.astype(np.float32), columns, CLASSES)

    return write
