"""The ONNX graph that onnxruntime and OpenVINO run, with what is done to the pixels before it and to its output."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.backbones.encoder_file import EncoderFile, encoder_of
from xfeat.featurize.backbones.registry import is_foreign
from xfeat.featurize.backbones.weights import Weights, sha256_of
from xfeat.featurize.specs import FeatureSpec
from xfeat.featurize.system.atomic import replacing
from xfeat.featurize.system.user_cache import cache_file

logger = logging.getLogger(__name__)

# Raised whenever the conversion changes, so that graphs made by an older version are not taken for new ones.
GRAPH_VERSION = 1


@dataclass(frozen=True)
class FeatureGraph:
    """An ONNX file that computes features, in its own way or as an encoder.

    Attributes:
        path: the ONNX file.
        spec: of the features.
        encoder: the encoder; ``None`` for an EfficientNet, whose graph takes pixels and returns features.
        input_name: name of the graph's input.
        output_name: name of the graph's output.
        batch: number of images per call, if the graph fixes it.
    """

    path: Path
    spec: FeatureSpec
    encoder: EncoderFile | None = None
    input_name: str = "image"
    output_name: str = "features"
    batch: int | None = None

    @property
    def fix(self) -> str:
        """What to do if the graph fails."""
        return "name another file" if self.encoder else f"delete {self.path}, which is then converted again"

    def input_shape(self, batch: int) -> list[int]:
        """Return the shape of the graph's input for a number of images."""
        side = self.spec.preprocess.size
        return [batch, 3, side, side] if self.encoder else [batch, side, side, 3]

    def prepared(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        """Return the graph's input for pixels uint8 (N, S, S, 3)."""
        if self.encoder is None:
            return pixels
        mean, std = (np.array(values, np.float32) for values in (self.spec.preprocess.mean, self.spec.preprocess.std))
        # A pixel has one of 256 values: looking them up gives the bits of computing them, in half the time.
        levels = ((np.arange(256, dtype=np.float32)[:, None] / np.float32(255) - mean) / std).T
        images = np.empty((len(pixels), 3, *pixels.shape[1:3]), np.float32)
        for channel in range(3):
            images[:, channel] = levels[channel][pixels[..., channel]]
        return images

    def features(self, output: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return float32 (N, D) for the graph's output: means over a map or over the tokens of its grid."""
        if self.encoder is None or self.encoder.kind == "vector":
            return output
        pooled: NDArray[Any]
        if self.encoder.kind == "map":
            pooled = output.mean((2, 3), dtype=np.float64)
        elif self.spec.pooling == "cls":
            pooled = output[:, 0]
        else:
            pooled = output[:, self.encoder.prefix_tokens :].mean(1, dtype=np.float64)
        return pooled.astype(np.float32)


def feature_graph(spec: FeatureSpec, weights: Weights) -> FeatureGraph:
    """Return the graph of ``spec``: an encoder's own file, or an EfficientNet converted to ONNX once.

    Raises:
        OutputError: if there is no place to keep a converted network.
        WeightsError: if the file is that of another encoder.
        ModelError: if the file cannot be used.
    """
    if is_foreign(spec.backbone):
        encoder = encoder_of(spec, weights)
        return FeatureGraph(weights.path, spec, encoder, encoder.input_name, encoder.output_name, encoder.batch)
    return FeatureGraph(graph_file(spec, weights), spec)


def graph_file(spec: FeatureSpec, weights: Weights) -> Path:
    """Return an EfficientNet as an ONNX file, from pixels to features, converting it if that has not been done yet.

    Raises:
        OutputError: if there is no place to keep it.
    """

    def convert(path: Path) -> None:
        from xfeat.featurize.engines.conversion import convert_feature_network

        convert_feature_network(spec, weights, path)

    recipe = f"{GRAPH_VERSION} {spec.backbone} {weights.sha256} {spec.preprocess.of_pixels.fingerprint} {spec.pooling}"
    return converted_once(f"{spec.backbone}-{spec.preprocess.size}", recipe, convert)


def converted_once(name: str, recipe: str, convert: Callable[[Path], None]) -> Path:
    """Return a converted network in the user's cache folder; it is converted if it is not there, or has changed.

    Args:
        name: of the network; part of the file's name.
        recipe: all that decides what the converted network is.
        convert: writes it to a path.

    Raises:
        OutputError: if there is no place to keep it.
    """
    path = cache_file(f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.onnx")
    record = path.with_suffix(".sha256")
    if not _matches(path, record):
        if path.exists() and record.exists():
            logger.warning("%s has changed since it was converted, and is converted again", path)
        logger.info("converting %s to ONNX, in %s", name, path.parent)
        convert(path)
        with replacing(record) as partial:
            partial.write_text(sha256_of(path))
    return path


def _matches(path: Path, record: Path) -> bool:
    try:
        return record.read_text() == sha256_of(path)
    except (OSError, ValueError):
        return False
