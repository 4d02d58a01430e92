"""From the settings that a user gives to a full spec and its weights."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path

from xfeat.featurize.backbones.registry import PREFERRED, backbone_info
from xfeat.featurize.backbones.weights import DownloadProgress, Weights, find_preferred_weights, find_weights
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.cache.writer import check_replaceable
from xfeat.featurize.errors import MismatchError
from xfeat.featurize.specs import NORMALIZATIONS, FeatureRequest, FeatureSpec


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
    spec = request.spec_of(
        backbone=found.backbone,
        weights_sha256=found.sha256,
        default_size=backbone_info(found.backbone).default_size,
    )
    return spec, found


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
    usual["size"] = backbone_info(spec.backbone).default_size
    given = (spec.preprocess.mean, spec.preprocess.std)
    asked = {
        "backbone": spec.backbone,
        "size": spec.preprocess.size,
        "normalize": next((name for name, values in NORMALIZATIONS.items() if values == given), usual["normalize"]),
        **{name: getattr(spec, name) for name in ("pooling", "views", "dtype", "precision")},
        "grey_bits": spec.preprocess.grey_bits,
        "frames": spec.preprocess.frames,
    }
    usual["grey_bits"] = 16  # of most data sets, where auto finds it too
    changed = {name.replace("_", "-"): value for name, value in asked.items() if value != usual[name]}
    options = [part for name, value in changed.items() for part in (f"--{name}", str(value))]
    classes = ["--classes", ",".join(class_names)] if class_names else []
    return shlex.join(["xfeat", "featurize", data, *options, *classes, "-o", str(output)])


def _check_same_weights(output: Path, existing: FeatureSpec, found: Weights) -> None:
    if existing.weights_sha256 != found.sha256:
        raise MismatchError(
            "the cache was computed with other weights",
            path=output,
            expected=f"{existing.backbone} with SHA-256 {existing.weights_sha256[:16]}…",
            found=f"{found.path} with {found.sha256[:16]}…",
            fix="give the file of those weights with --weights, choose another -o, or replace the cache with --force",
        )
