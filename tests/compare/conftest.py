"""Small caches of features drawn from a normal distribution, whose mean depends on the class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from featurize.cache import FeatureCache
from featurize.cache_writing import CacheFacts, write_cache
from featurize.columns import Columns
from featurize.specs import FeatureSpec

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
        write_cache(
            file,
            CacheFacts(
                spec=FeatureSpec(backbone="efficientnet-lite0", weights_sha256="0" * 64),
                class_names=CLASSES,
                data_root=str(file.parent),
                weights_path="",
                columns=Columns(
                    label=label,
                    split=split,
                    path=[f"{number:03d}.png" for number in range(count)],
                    group=[f"patient {number // 3}" if patients else "" for number in range(count)],
                    sha256=[f"{number:064x}" for number in range(count)],
                    size=np.ones(count, np.int64),
                    mtime_ns=np.ones(count, np.int64),
                    change_mark=np.ones(count, np.int64),
                    truncated=np.zeros(count, bool),
                ),
                skipped=[],
            ),
            blocks=[(0, features.astype(np.float32))],
            dim=DIM,
        )
        return FeatureCache.open(file)

    return write
