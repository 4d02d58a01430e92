"""From what a user asked for to a full spec and the weights for it."""

from __future__ import annotations

import os
from pathlib import Path

from featurize.backbones import PREFERRED, backbone_info
from featurize.cache import FeatureCache
from featurize.errors import MismatchError
from featurize.replace import check_replaceable
from featurize.specs import NORMALIZATIONS, FeatureSpec, PreprocessSpec, require
from featurize.weights import DownloadProgress, Weights, find_preferred_weights, find_weights


def resolve_request(
    output: Path,
    *,
    backbone: str = "auto",
    weights: str | os.PathLike[str] | None = None,
    size: int | None = None,
    pooling: str = "final",
    views: int = 1,
    normalize: str = "half",
    dtype: str = "float32",
    force: bool = False,
    progress: DownloadProgress | None = None,
) -> tuple[FeatureSpec, Weights]:
    """Choose the backbone, find its weights and say in full what is to be computed.

    Args:
        output: the cache to be written; ``auto`` keeps the backbone of one that is there, unless ``force``.
        backbone: a name, or ``auto``.
        weights: a file of weights; ``auto`` takes it as one of the backbone of the existing cache, or else of
            :data:`featurize.backbones.PREFERRED`.
        size: side of the input in pixels; by default the backbone's own.
        pooling: ``final`` or ``multilevel``.
        views: views of each image, the clean one included.
        normalize: ``half`` or ``imagenet``.
        dtype: ``float32`` or ``float16``.
        force: whether an existing ``output`` is to be replaced.
        progress: called while weights are downloaded.

    Raises:
        SpecError: if a setting is out of range.
        WeightsError: if the weights cannot be had.
        CacheError: if ``output`` exists and is no cache.
        MismatchError: if ``output`` was made with other weights of the same name.
    """
    _check_settings(size=size, pooling=pooling, views=views, normalize=normalize, dtype=dtype)
    if force:
        check_replaceable(output)
    existing = FeatureCache.open(output).spec if backbone == "auto" and not force and output.exists() else None
    if existing is not None:
        found = find_weights(existing.backbone, file=weights, progress=progress)
        _check_same_weights(output, existing, found)
    elif backbone == "auto" and weights is None:
        found = find_preferred_weights(progress)
    else:
        found = find_weights(PREFERRED if backbone == "auto" else backbone, file=weights, progress=progress)
    mean, std = NORMALIZATIONS[normalize]
    preprocess = PreprocessSpec(
        size=backbone_info(found.backbone).default_size if size is None else size, mean=mean, std=std
    )
    spec = FeatureSpec(
        backbone=found.backbone,
        weights_sha256=found.sha256,
        preprocess=preprocess,
        pooling=pooling,
        views=views,
        dtype=dtype,
    )
    return spec, found


def _check_settings(*, size: int | None, pooling: str, views: int, normalize: str, dtype: str) -> None:
    """Let the specs refuse what is out of range before a minute is spent on a download."""
    require(normalize in NORMALIZATIONS, "unknown normalization", expected=" or ".join(NORMALIZATIONS), found=normalize)
    preprocess = PreprocessSpec() if size is None else PreprocessSpec(size=size)
    FeatureSpec(
        backbone=PREFERRED, weights_sha256="0" * 64, preprocess=preprocess, pooling=pooling, views=views, dtype=dtype
    )


def _check_same_weights(output: Path, existing: FeatureSpec, found: Weights) -> None:
    if existing.weights_sha256 != found.sha256:
        raise MismatchError(
            "the cache was made with other weights",
            path=output,
            expected=f"{existing.backbone} with SHA-256 {existing.weights_sha256[:16]}…",
            found=f"{found.path} with {found.sha256[:16]}…",
            mend="name the file it was made with by --weights, choose another -o, or replace it with --force",
        )
