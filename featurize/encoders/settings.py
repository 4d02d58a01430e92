"""From the settings that a user gives to the spec of features of an encoder."""

from __future__ import annotations

import dataclasses
import logging

from xfeat.featurize.backbones.encoder_file import EncoderFile
from xfeat.featurize.backbones.weights import Weights
from xfeat.featurize.errors import SpecError
from xfeat.featurize.specs import FeatureRequest, FeatureSpec

logger = logging.getLogger(__name__)

# Of ImageNet-1k, with and without a background class, and of ImageNet-21k as timm and torchvision have it.
_CLASSES = (1000, 1001, 10450, 11221, 11821, 21841, 21843)


def encoder_spec(request: FeatureRequest, weights: Weights, encoder: EncoderFile) -> FeatureSpec:
    """Return the full spec of features of an encoder, and warn of what may be a mistake.

    Args:
        request: the settings.
        weights: of the encoder.
        encoder: what it is.

    Raises:
        SpecError: if a setting is impossible with it, or tokens have no pooling.
    """
    if request.precision != "float32":
        raise SpecError(
            "an encoder in an ONNX file computes in the type of its file",
            expected="--precision float32",
            found=f"--precision {request.precision}",
        )
    pooling = _pooling(request.pooling, encoder)
    _warn(request, weights.backbone, encoder, pooling)
    chosen = dataclasses.replace(request, pooling=pooling)
    return chosen.spec_of(backbone=weights.backbone, weights_sha256=weights.sha256, defaults=encoder.preprocess)


def _pooling(asked: str, encoder: EncoderFile) -> str:
    """Return how the output becomes a vector: ``final`` for a vector or a map, ``cls`` or ``mean`` for tokens."""
    tokens = encoder.kind == "tokens"
    if asked == "multilevel" or (asked != "final" and not tokens):
        expected = "--pooling cls or mean" if tokens else "no --pooling"
        output = f"{encoder.output_name}, a {encoder.kind.removesuffix('s')} of {encoder.dim} numbers per image"
        raise SpecError(
            f"pooling {asked} is impossible with this encoder",
            expected=f"{expected}: its output is {output}" if not tokens else expected,
            found=f"--pooling {asked}",
        )
    pooling = asked if asked != "final" else encoder.pooling
    if tokens and not pooling:
        found = f"{encoder.output_name}: {encoder.tokens} tokens of {encoder.dim} numbers"
        raise SpecError(
            "the output of the encoder is tokens",
            expected="--pooling cls (the first token) or --pooling mean (of the others)",
            found=found,
        )
    if pooling == "cls" and encoder.tokens > 1 and encoder.grid is not None and not encoder.prefix_tokens:
        height, width = encoder.grid
        found = f"{encoder.tokens} = {height} × {width} tokens, all of the image"
        raise SpecError("the output of the encoder has no class token", expected="--pooling mean", found=found)
    return pooling or "final"


def _warn(request: FeatureRequest, name: str, encoder: EncoderFile, pooling: str) -> None:
    if encoder.is_probabilities or (encoder.kind == "vector" and encoder.dim in _CLASSES):
        what = "probabilities of classes" if encoder.is_probabilities else f"scores of {encoder.dim} classes, it seems"
        logger.warning("%s: its output is %s; features of the layer before usually work better", name, what)
    usual = [level for level in ("mean", "std") if not getattr(request, level)]
    if usual and not (encoder.states_preprocess or request.normalize):
        logger.warning(
            "%s: the file does not say how its images were normalised: ImageNet's %s used. Name %s",
            name,
            "mean and std are" if usual[1:] else f"{usual[0]} is",
            "others with --mean and --std, or these with --normalize imagenet" if usual[1:] else f"--{usual[0]} too",
        )
    if pooling == "mean" and encoder.grid is None:
        logger.warning(
            "%s: %d tokens are no square grid: the mean is over all of them, and there is no heatmap. If the output is "
            "(N, D, T) and not (N, T, D), export it transposed",
            name,
            encoder.tokens,
        )
