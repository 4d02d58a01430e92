"""From the settings that a user gives to a full spec and its weights."""

from __future__ import annotations

import dataclasses
import logging
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xfeat.featurize.backbones.registry import BACKBONES, PREFERRED, backbone_info, is_foreign
from xfeat.featurize.backbones.weights import Weights, find_preferred_weights, find_weights
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.cache.writer import check_replaceable
from xfeat.featurize.encoders.find import find_encoder, names_encoder
from xfeat.featurize.encoders.settings import encoder_spec
from xfeat.featurize.errors import MismatchError, SpecError
from xfeat.featurize.progress import Steps
from xfeat.featurize.specs import NORMALIZATIONS, TOKEN_POOLINGS, FeatureRequest, FeatureSpec, PreprocessSpec

logger = logging.getLogger(__name__)


def resolve_request(
    output: Path | None, request: FeatureRequest, *, force: bool = False, progress: Steps | None = None
) -> tuple[FeatureSpec, Weights]:
    """Choose the backbone, find its weights and return the full spec.

    Args:
        output: the cache to be written, if there is one; ``auto`` takes the backbone of an existing one, unless
            ``force``.
        request: the settings.
        force: whether an existing ``output`` is to be replaced.
        progress: called while weights are downloaded.

    Raises:
        SpecError: if there is no such backbone, or a setting is impossible with it.
        WeightsError: if the weights cannot be found or downloaded.
        ModelError: if the file of an encoder cannot be used.
        CacheError: if ``output`` exists and is not a cache.
        MismatchError: if ``output`` was computed with other weights of the same backbone.
    """
    if force and output is not None:
        check_replaceable(output)
    chooses, file = request.backbone == "auto", request.weights
    existing = None
    if chooses and not force and output is not None and output.exists():
        existing = FeatureCache.open(output, check=False)
    name = existing.spec.backbone if existing is not None else PREFERRED if chooses else request.backbone
    if request.normalize and (request.mean or request.std):
        given = " and ".join(f"--{name}" for name in ("mean", "std") if getattr(request, name))
        logger.warning("%s overrides what --normalize %s stands for", given, request.normalize)
    if names_encoder(name):
        if existing is not None and file is None and os.path.isfile(existing.weights_path):
            file = Path(existing.weights_path)
        found, encoder = find_encoder(name, file=file, size=request.size)
        spec = encoder_spec(request, found, encoder)
    else:
        if name not in BACKBONES and os.path.isfile(name):
            raise SpecError("not the name of an encoder's file", expected="a name that ends in .onnx", found=name)
        if request.pooling in TOKEN_POOLINGS:
            raise SpecError(
                f"pooling {request.pooling} is for encoders whose output is tokens",
                expected=f"--pooling final or multilevel for {name}",
                found=request.pooling,
            )
        if file is not None and file.suffix.lower() == ".onnx":
            raise SpecError(
                f"an ONNX file is no weights of {name}", expected=f"--backbone {file}", found=f"--weights {file}"
            )
        unnamed = chooses and existing is None and file is None
        found = find_preferred_weights(progress) if unnamed else find_weights(name, file=file, progress=progress)
        spec = request.spec_of(
            backbone=found.backbone, weights_sha256=found.sha256, defaults=backbone_defaults(found.backbone)
        )
    if existing is not None:
        _check_same_weights(existing.path, existing.spec, found)
    return spec, found


def backbone_defaults(backbone: str) -> PreprocessSpec:
    """Return how images are prepared for an EfficientNet if the user says nothing.

    Raises:
        SpecError: if the backbone is unknown.
    """
    return PreprocessSpec(size=backbone_info(backbone).default_size)


def featurize_command(
    spec: FeatureSpec, data: str, output: Path, class_names: Sequence[str], weights_path: str = ""
) -> str:
    """Return the command that computes a cache with this spec: the fix where a cache is missing or incomplete.

    Args:
        spec: of the features.
        data: folder, archive or manifest of the images.
        output: the cache to write.
        class_names: of the images, none if they have none.
        weights_path: file of the weights, which is named if it is that of an encoder other than the EfficientNets.

    Options that a cache does not record are left out: ``--groups``, and ``--weights`` of an EfficientNet.
    """
    usual: dict[str, Any] = {setting.name: setting.default for setting in dataclasses.fields(FeatureRequest)}
    foreign = is_foreign(spec.backbone)
    own = None if foreign else backbone_defaults(spec.backbone)
    asked = {"backbone": spec.backbone, **_options_of(spec.preprocess, own)}
    if foreign and weights_path:
        asked["weights"] = weights_path
    asked |= {name: getattr(spec, name) for name in ("pooling", "views", "dtype", "precision")}
    changed = {name.replace("_", "-"): value for name, value in asked.items() if value != usual[name]}
    options = [part for name, value in changed.items() for part in (f"--{name}", str(value))]
    classes = ["--classes", ",".join(class_names)] if class_names else []
    return shlex.join(["xfeat", "featurize", data, *options, *classes, "-o", str(output)])


def _options_of(preprocess: PreprocessSpec, own: PreprocessSpec | None) -> dict[str, str]:
    """Return name and value of the options that turn a backbone's own preprocessing, if it is known, into this one."""
    names = [field.name for field in dataclasses.fields(preprocess)]
    other = [name for name in names if own is None or getattr(preprocess, name) != getattr(own, name)]
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
