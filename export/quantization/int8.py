"""A traced model in 8 bits: prepared, its backbone quantised on training images, its features corrected."""

from __future__ import annotations

from collections.abc import Collection
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from xfeat.export.build.graph import Graph, make_node
from xfeat.export.model.progress import Progress
from xfeat.export.quantization.equalization import equalise, fold_normalisation
from xfeat.export.quantization.qdq import store_matrices_in_8_bits, write_layers
from xfeat.export.quantization.rounding import QuantizedLayers, quantize_layers
from xfeat.export.quantization.subgraphs import cut_at, features_name, run_model
from xfeat.featurize.images.preprocess import Pixels
from xfeat.featurize.specs import PreprocessSpec

# Images computed side by side in float32 and in 8 bits: about 50 MB each at this size. Larger images are fewer.
_IMAGES = 32
_SIDE = 224
_MIN_IMAGES = 8


@dataclass(frozen=True, kw_only=True)
class PreparedModel:
    """A float32 model, ready to be quantised, and the images to quantise it on.

    Attributes:
        model: ``image`` float32 (N, 3, S, S) and all outputs; channels equalised.
        pixels: uint8 (n, S, S, 3), training images.
        features: of the float32 model for these images, float32 (n, D).
    """

    model: onnx.ModelProto
    pixels: Pixels
    features: NDArray[np.float32]

    @property
    def features_name(self) -> str:
        """Name of the input of the head."""
        return features_name(self.model)

    @property
    def backbone(self) -> onnx.ModelProto:
        """The part of the model that computes the features."""
        return cut_at(self.model, self.features_name)

    @property
    def selected(self) -> NDArray[np.intp]:
        """Indices of the images, spread evenly, that the layers are quantised on."""
        limit = max(_MIN_IMAGES, _IMAGES * _SIDE**2 // self.pixels.shape[1] ** 2)
        count = min(limit, len(self.pixels))
        places: NDArray[np.intp] = ((np.arange(count) + 0.5) * len(self.pixels) / count).astype(np.intp)
        return places

    @property
    def first_block(self) -> tuple[str, ...]:
        """Names of the convolutions of stem and first block: up to the first one that no activation follows.

        They read most of an image in the fewest channels: in float32 they take almost no space, and save a quarter of
        the error of a whole Lite0 for a tenth of its speed.
        """
        graph = Graph(self.backbone)
        readers, names = graph.readers(), []
        for node in graph.convolutions:
            names.append(node.name)
            if any(reader.op_type in ("Conv", "Add") for reader in readers.get(node.output[0], [])):
                return tuple(names)
        return ()


def prepare(traced: onnx.ModelProto, pixels: Pixels, preprocess: PreprocessSpec) -> PreparedModel:
    """Equalise a traced model and fold its normalisation, without changing what it computes.

    Args:
        traced: ``image`` float32 (N, 3, S, S) and all outputs, float32.
        pixels: uint8 (n, S, S, 3), training images.
        preprocess: the normalisation that the model contains.
    """
    model = deepcopy(traced)
    for node in model.graph.node:
        if node.op_type == "Conv":  # the name of its weight in torch, such as _blocks.3._project_conv
            node.name = node.input[1].removeprefix("backbone.").removeprefix("model.").removesuffix(".weight")
    (features,) = run_model(model, pixels, [features_name(model)])
    equalise(model, pixels)
    fold_normalisation(model, preprocess)
    return PreparedModel(model=model, pixels=pixels, features=features)


def quantize_backbone(
    prepared: PreparedModel, float_layers: Collection[str] = (), progress: Progress | None = None
) -> QuantizedLayers:
    """Quantise the backbone of a prepared model; arguments as for :func:`quantize_layers`."""
    return quantize_layers(prepared.backbone, prepared.pixels[prepared.selected], float_layers, progress)


def write_int8(prepared: PreparedModel, layers: QuantizedLayers) -> onnx.ModelProto:
    """Return the model with quantised layers, and with the head's matrices stored in 8 bits.

    Activations are unsigned and weights signed with one scale per channel, the form that CPUs with VNNI compute
    fastest.
    """
    model = deepcopy(prepared.model)
    write_layers(model, layers)
    return finish_int8(model, prepared.features, prepared.pixels)


def finish_int8(model: onnx.ModelProto, wanted: NDArray[np.float32], pixels: Pixels) -> onnx.ModelProto:
    """Add the mean shift of each feature back, which a head would take for a finding, and store matrices in 8 bits.

    Args:
        model: with an encoder in 8 bits; changed in place, and returned.
        wanted: features float32 (n, D) of the float32 model.
        pixels: uint8 (n, S, S, 3), the images of ``wanted``.
    """
    features = features_name(model)
    (found,) = run_model(cut_at(model, features), pixels, [features])
    graph = Graph(model)
    graph.set_weight("feature_shift", (wanted - found).mean(0).astype(np.float32))
    corrected = make_node("Add", [features, "feature_shift"], "corrected_features")
    graph.insert_after(features, corrected, graph.readers()[features])
    store_matrices_in_8_bits(model)
    return model
