"""From the settings that a user gives to a full spec and its weights."""

from __future__ import annotations

import dataclasses
import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

from xfeat.featurize.backbones.registry import PREFERRED, backbone_info
from xfeat.featurize.backbones.weights import DownloadProgress, Weights, find_preferred_weights, find_weights
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.cache.writer import check_replaceable
from xfeat.featurize.errors import MismatchError
from xfeat.featurize.specs import NORMALIZATIONS, FeatureRequest, FeatureSpec, PreprocessSpec

logger = logging.getLogger(__name__)


def resolve_request(
    output: Path, request: FeatureRequest, *, force: bool = False, progress: DownloadProgress | None = None
) -> tuple[FeatureSpec, Weights]:
    """Choose the backbone, find its weights and return the full spec.

    Args:
        output: the cache to be written; ``auto`` takes the backbone of an existing cache, unless ``force``.
        request: the settings.
        force: whether an existing ``output`` is to be replaced.
        progress: called while weights are downloaded.

    Raises:
        WeightsError: if the weights cannot be found or downloaded.
        CacheError: if ``output`` exists and is not a cache.
        MismatchError: if ``output`` was computed with other weights of the same backbone.
    """
    if force:
        check_replaceable(output)
    chooses, file = request.backbone == "auto", request.weights
    existing = FeatureCache.open(output, check=False).spec if chooses and not force and output.exists() else None
    if existing is not None:
        found = find_weights(existing.backbone, file=file, progress=progress)
        _check_same_weights(output, existing, found)
    elif chooses and file is None:
        found = find_preferred_weights(progress)
    else:
        found = find_weights(PREFERRED if chooses else request.backbone, file=file, progress=progress)
    if request.normalize and (request.mean or request.std):
        given = " and ".join(f"--{name}" for name in ("mean", "std") if getattr(request, name))
        logger.warning("%s overrides what --normalize %s stands for", given, request.normalize)
    spec = request.spec_of(
        backbone=found.backbone,
        weights_sha256=found.sha256,
        defaults=backbone_defaults(found.backbone),
    )
    return spec, found


def backbone_defaults(backbone: str) -> PreprocessSpec:
    """Return how images are prepared for a backbone if the user says nothing.

    Raises:
        SpecError: if the backbone is unknown.
    """
    return PreprocessSpec(size=backbone_info(backbone).default_size)


def featurize_command(spec: FeatureSpec, data: str, output: Path, class_names: Sequence[str]) -> str:
    """Return the command that computes a cache with this spec: the fix where a cache is missing or incomplete.

    Args:
        spec: of the features.
        data: folder, archive or manifest of the images.
        output: the cache to write.
        class_names: of the images, none if they have none.

    Options that a cache does not record are left out: ``--groups`` and ``--weights``.
    """
    usual = {setting.name: setting.default for setting in dataclasses.fields(FeatureRequest)}
    own = backbone_defaults(spec.backbone)
    asked = {"backbone": spec.backbone, **_options_of(spec.preprocess, own)}
    asked |= {name: getattr(spec, name) for name in ("pooling", "views", "dtype", "precision")}
    changed = {name.replace("_", "-"): value for name, value in asked.items() if value != usual[name]}
    options = [part for name, value in changed.items() for part in (f"--{name}", str(value))]
    classes = ["--classes", ",".join(class_names)] if class_names else []
    return shlex.join(["xfeat", "featurize", data, *options, *classes, "-o", str(output)])


def _options_of(preprocess: PreprocessSpec, own: PreprocessSpec) -> dict[str, str]:
    """Return name and value of the options that turn a backbone's own preprocessing into this one."""
    names = [field.name for field in dataclasses.fields(own)]
    other = [name for name in names if getattr(preprocess, name) != getattr(own, name)]
    levels = (preprocess.mean, preprocess.std)
    short = next((name for name, values in NORMALIZATIONS.items() if values == levels), None)
    options = {name: getattr(preprocess, name) for name in other}
    if short and {"mean", "std"} & options.keys():
        options = {name: value for name, value in options.items() if name not in ("mean", "std")} | {"normalize": short}
    return {
        name: ",".join(map(str, value)) if isinstance(value, tuple) else str(value) for name, value in options.items()
    }


def _check_same_weights(output: Path, existing: FeatureSpec, found: Weights) -> None:
    if existing.weights_sha256 != found.sha256:
        raise MismatchError(
            "the cache was computed with other weights",
            path=output,
            expected=f"{existing.backbone} with SHA-256 {existing.weights_sha256[:16]}…",
            found=f"{found.path} with {found.sha256[:16]}…",
            fix="give the file of those weights with --weights, choose another -o, or replace the cache with --force",
        )
