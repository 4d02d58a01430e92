"""The out-of-distribution score of a run, fitted to its feature cache."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from xfeat.export.build.ood_score import OodScore, fit_ood_score
from xfeat.export.specs import ExportSpec
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.errors import DataError, MismatchError
from xfeat.featurize.pipeline.request import featurize_command
from xfeat.head.data.pooling import pooled
from xfeat.head.runs.inputs import search_cache
from xfeat.head.runs.reader import Run

logger = logging.getLogger(__name__)


def ood_score_from_cache(run: Run, spec: ExportSpec) -> tuple[OodScore, NDArray[np.float32]] | tuple[None, None]:
    """Fit the ood score to the training features in the run's cache, which must not have changed since.

    Returns:
        The score, and those of the validation images, float32 (n,); ``None`` for both if ``spec`` wants no score, or if
        the cache has changed and ``spec`` allows that.

    Raises:
        CacheError: if the cache is damaged.
        MismatchError: if it was recomputed with other settings, or, if a score is wanted, from other images.
        DataError: if it is missing, or does not have the images of the run.
    """
    search = search_cache(run)
    path = search.path or search.refused
    if not spec.ood and (spec.allow_changed_cache or path is None):
        return None, None
    if path is None:
        wanted = Path(run.cache["path"])
        images, weights = run.cache["data_root"], run.cache["weights_path"]
        again = featurize_command(run.feature_spec, images, wanted, run.class_names, weights)
        raise DataError(
            "the features that the run was trained on are missing, so the out-of-distribution score cannot be fitted",
            path=wanted,
            expected=f"a feature cache with content of SHA-256 {run.cache['content_sha256'][:16]}…",
            found=search.report,
            fix=f"name it with --features PATH, or make it again with {again}, or export without the score with "
            "--no-ood",
        )
    cache = pooled(FeatureCache.open(path), run.feature_spec.pooling)
    try:
        _require_unchanged(run, cache, content=spec.ood)
    except MismatchError as change:
        if not spec.allow_changed_cache:
            raise
        logger.warning("%s: %s; the model has no out-of-distribution score", path, change.what)
        return None, None
    if not spec.ood:
        return None, None
    score = fit_ood_score(_features(run, cache, "train"))
    return score, score(torch.from_numpy(_features(run, cache, "valid"))).numpy()


def _require_unchanged(run: Run, cache: FeatureCache, *, content: bool) -> None:
    fix = "name the cache of the run with --features PATH, or train on this one with xhead train, or export without "
    if cache.spec.fingerprint != run.feature_spec.fingerprint:
        raise MismatchError(
            "the feature cache was recomputed with other settings since the run",
            path=cache.path,
            expected=run.feature_spec.describe(),
            found=cache.spec.describe(),
            fix=f"{fix}the ood score with --allow-changed-cache",
        )
    if content and cache.content_sha256 != run.cache["content_sha256"]:
        raise MismatchError(
            "the feature cache was recomputed since the run, from other images, labels or splits or by another engine",
            path=cache.path,
            expected=f"content of SHA-256 {run.cache['content_sha256'][:16]}…",
            found=f"{cache.content_sha256[:16]}…",
            fix=f"{fix}the ood score with --no-ood or --allow-changed-cache",
        )


def _features(run: Run, cache: FeatureCache, split: str) -> NDArray[np.float32]:
    rows = {path: row for row, path in enumerate(cache.columns.path)}
    wanted = [row["path"] for row in run.predictions() if row["split"] == split]
    found = sorted(rows[path] for path in wanted if path in rows)
    if len(found) < max(2, len(wanted) // 2):
        raise DataError(
            f"the feature cache has only {len(found)} of the run's {len(wanted)} {split} images",
            path=cache.path,
            fix="train again with xhead train, or export without the ood score with --no-ood",
        )
    features = cache.features[found]
    # If there are several views per image, the first is the one without augmentation.
    return np.asarray(features if features.ndim == 2 else features[:, 0], np.float32)
