"""Caches of made-up features, for tests in which no image is read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xfeat.featurize.cache.columns import CacheDescription, Columns
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.cache.writer import write_cache
from xfeat.featurize.specs import FeatureSpec


def write_made_up(
    path: Path,
    features: np.ndarray,
    columns: dict[str, Sequence[Any] | np.ndarray],
    class_names: Sequence[str],
    *,
    data_root: Path | None = None,
    **spec: Any,
) -> FeatureCache:
    """Write and open a cache.

    Args:
        path: where.
        features: (N, D) or (N, V, D).
        columns: ``label``, ``split`` and ``path``; ``group`` if there are any, ``contents`` (texts in place of the
            files' contents, by default the paths).
        class_names: names of the classes.
        data_root: by default the folder of the cache.
        spec: what of the specification matters.
    """
    count = len(features)
    write_cache(
        path,
        CacheDescription(
            spec=FeatureSpec(backbone="efficientnet-lite0", weights_sha256="0" * 64, **spec),
            class_names=list(class_names),
            data_root=str(data_root or path.parent),
            weights_path="",
            columns=Columns(
                label=np.asarray(columns["label"], np.int32),
                split=np.asarray(columns["split"], np.uint8),
                path=list(columns["path"]),
                group=list(columns.get("group", [""] * count)),
                sha256=[hashlib.sha256(text.encode()).hexdigest() for text in columns.get("contents", columns["path"])],
                size=np.ones(count, np.int64),
                mtime_ns=np.ones(count, np.int64),
                change_mark=np.ones(count, np.int64),
                truncated=np.zeros(count, np.bool_),
            ),
            skipped=[],
        ),
        blocks=[(0, features)],
        dim=features.shape[-1],
    )
    return FeatureCache.open(path)
