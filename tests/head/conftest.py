"""Small caches of drawn features: classes are Gaussian clouds, so that a head has something to learn."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.caches import edit_cache, write_made_up
from tests.edited_runs import edit_run
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.datasets.layouts import NO_SPLIT
from xfeat.head.runs.reader import Run, open_run

DIM = 12
MakeCache = Callable[..., FeatureCache]


def cloud(labels: np.ndarray, *, separation: float = 1.0, seed: int = 0) -> np.ndarray:
    """Features float32 (n, DIM): noise, plus the class's own direction."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(int(labels.max(initial=0)) + 1, DIM)) * separation
    return (rng.normal(size=(len(labels), DIM)) + centres[labels]).astype(np.float32)


def copied_run(source: Path, folder: Path) -> Run:
    """Copy a folder with a cache and one run in ``runs``, and open the run, which then points to the copied cache."""
    shutil.copytree(source, folder, symlinks=True, dirs_exist_ok=True)
    [facts] = folder.glob("runs/[!l]*/run.json")
    facts.write_text(facts.read_text().replace(str(source), str(folder)))
    edit_run(facts.parent)
    return open_run(facts.parent)


@pytest.fixture
def make_cache(tmp_path: Path) -> MakeCache:
    return cache_maker(tmp_path)


def cache_maker(folder: Path) -> MakeCache:
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
        columns: dict[str, Any] = {"label": truth, "split": codes, "path": names, "contents": contents or names}
        if groups is not None:
            columns["group"] = groups
        views = {"views": rows.shape[1]} if rows.ndim == 3 else {}
        spec = {"dtype": str(rows.dtype), "pooling": pooling, **views}
        root = data_root or folder / "images"
        return write_made_up(folder / path, rows, columns, classes, data_root=root, **spec)

    return make


@pytest.fixture
def draw_images() -> Callable[[FeatureCache], FeatureCache]:
    """Put a small grey picture where each row of a cache says there is one, and say in the cache what it is."""

    def draw(cache: FeatureCache) -> FeatureCache:
        files = [Path(cache.data_root) / path for path in cache.columns.path]
        for row, file in enumerate(files):
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (40, 30), row % 256).save(file)
        contents = [file.read_bytes() for file in files]
        digests = [hashlib.sha256(content).hexdigest() for content in contents]
        edit_cache(cache.path, {"sha256": digests, "size": [len(content) for content in contents]})
        return FeatureCache.open(cache.path)

    return draw


@pytest.fixture
def unsplit() -> int:
    return NO_SPLIT
