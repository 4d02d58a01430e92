"""The distance from the training features, fitted to the cache of a run."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xfeat.export.build.ood_score import Distance, fit_ood_score, fit_ood_threshold
from xfeat.export.specs import ExportSpec
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.errors import DataError, MismatchError
from xfeat.featurize.pipeline.request import featurize_command
from xfeat.head.data.pooling import pooled
from xfeat.head.runs.reader import Run

logger = logging.getLogger(__name__)


def ood_score_from_cache(run: Run, spec: ExportSpec) -> tuple[Distance, float] | tuple[None, None]:
    """Fit the distance to the training features in the run's cache, which must be what it was then.

    Returns:
        The distance, and its threshold from the validation images; nothing if ``spec`` wants none, or if the cache has
        changed and ``spec`` allows that.

    Raises:
        CacheError: if the cache is damaged.
        MismatchError: if it has been made anew with other settings, or, where a distance is wanted, of other images.
        DataError: if it is gone, or does not have the images of the run.
    """
    path = Path(run.cache["path"])
    if not spec.ood and (spec.allow_changed_cache or not path.exists()):
        return None, None
    if not path.exists():
        raise DataError(
            "the features that the run was trained on are gone, so the distance from them cannot be measured",
            path=path,
            fix=f"{featurize_command(run.feature_spec, run.cache['data_root'], path, run.class_names)}, or export "
            "without the distance with --no-ood",
        )
    cache = pooled(FeatureCache.open(path), run.feature_spec.pooling)
    try:
        _require_unchanged(run, cache, content=spec.ood)
    except MismatchError as change:
        if not spec.allow_changed_cache:
            raise
        logger.warning("%s: %s; the distance from it (ood) is left out", path, change.what)
        return None, None
    if not spec.ood:
        return None, None
    distance = fit_ood_score(_features(run, cache, "train"))
    return distance, fit_ood_threshold(distance(_features(run, cache, "valid")))


def _require_unchanged(run: Run, cache: FeatureCache, *, content: bool) -> None:
    if cache.spec.fingerprint != run.feature_spec.fingerprint:
        raise MismatchError(
            "the cache has been made anew with other settings since the run",
            path=cache.path,
            expected=run.feature_spec.describe(),
            found=cache.spec.describe(),
            fix="train on it with xhead train, or export this run without the distance with --allow-changed-cache",
        )
    if content and cache.content_sha256 != run.cache["content_sha256"]:
        raise MismatchError(
            "the cache has been made anew since the run, of other images, labels or splits or by another engine",
            path=cache.path,
            expected=f"content of SHA-256 {run.cache['content_sha256'][:16]}…",
            found=f"{cache.content_sha256[:16]}…",
            fix="train on it with xhead train, or export this run without the distance with --no-ood or "
            "--allow-changed-cache",
        )


def _features(run: Run, cache: FeatureCache, split: str) -> NDArray[np.float32]:
    rows = {path: row for row, path in enumerate(cache.columns.path)}
    wanted = [row["path"] for row in run.predictions() if row["split"] == split]
    found = sorted(rows[path] for path in wanted if path in rows)
    if len(found) < max(2, len(wanted) // 2):
        raise DataError(
            f"the cache has {len(found)} of the run's {len(wanted)} {split} images",
            path=cache.path,
            fix="train again with xhead train, or export without the distance with --no-ood",
        )
    features = cache.features[found]
    # Of several views of an image, the first is the clean one.
    return np.asarray(features if features.ndim == 2 else features[:, 0], np.float32)
