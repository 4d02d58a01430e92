"""Small caches of drawn features: classes are Gaussian clouds, so that a head has something to learn."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featurize.cache import FeatureCache
from featurize.cache_writing import CacheFacts, write_cache
from featurize.columns import Columns
from featurize.dataset import NO_SPLIT
from featurize.specs import FeatureSpec

DIM = 12
MakeCache = Callable[..., FeatureCache]


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def cloud(labels: np.ndarray, *, separation: float = 1.0, seed: int = 0) -> np.ndarray:
    """Features float32 (n, DIM): noise, plus the class's own direction."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(int(labels.max(initial=0)) + 1, DIM)) * separation
    return (rng.normal(size=(len(labels), DIM)) + centres[labels]).astype(np.float32)


@pytest.fixture
def make_cache(tmp_path: Path) -> MakeCache:
    """Write and open a cache; by default 100 training, 40 validation and 40 test rows of two classes."""

    def make(
        path: str = "features.h5",
        *,
        sizes: Sequence[int] = (100, 40, 40),
        classes: Sequence[str] = ("covid", "normal"),
        labels: Sequence[int] | None = None,
        split: Sequence[int] | None = None,
        groups: Sequence[str] | None = None,
        contents: Sequence[str] | None = None,
        features: np.ndarray | None = None,
        separation: float = 1.0,
        data_root: Path | None = None,
        pooling: str = "final",
    ) -> FeatureCache:
        codes = np.array([part for part, size in enumerate(sizes) for _ in range(size)] if split is None else split)
        count = len(codes)
        truth = np.arange(count) % len(classes) if labels is None else np.array(labels)
        rows = cloud(truth, separation=separation) if features is None else features
        names = [f"{classes[code]}/{row:04d}.png" for row, code in enumerate(truth)]
        target = tmp_path / path
        write_cache(
            target,
            CacheFacts(
                spec=FeatureSpec(
                    backbone="efficientnet-lite0",
                    weights_sha256="0" * 64,
                    dtype=str(rows.dtype),
                    pooling=pooling,
                    **({"views": rows.shape[1]} if rows.ndim == 3 else {}),
                ),
                class_names=list(classes),
                data_root=str(data_root or tmp_path / "images"),
                weights_path=str(tmp_path / "weights.pth"),
                columns=Columns(
                    label=truth.astype(np.int32),
                    split=codes.astype(np.uint8),
                    path=names,
                    group=list(groups) if groups is not None else [""] * count,
                    sha256=[digest(text) for text in (contents or names)],
                    size=np.ones(count, np.int64),
                    mtime_ns=np.ones(count, np.int64),
                    change_mark=np.ones(count, np.int64),
                    truncated=np.zeros(count, np.bool_),
                ),
                skipped=[],
            ),
            blocks=[(0, rows)],
            dim=rows.shape[-1],
        )
        return FeatureCache.open(target)

    return make


@pytest.fixture
def draw_images() -> Callable[[FeatureCache], None]:
    """Put a small grey picture where each row of a cache says there is one."""

    def draw(cache: FeatureCache) -> None:
        for row, path in enumerate(cache.columns.path):
            file = Path(cache.data_root) / path
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (40, 30), row % 256).save(file)

    return draw


@pytest.fixture
def unsplit() -> int:
    return NO_SPLIT
