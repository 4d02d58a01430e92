"""Quantising a backbone layer by layer from the input on; each layer corrects the error of those before it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from xfeat.export.build.graph import Graph
from xfeat.export.model.batches import to_nchw
from xfeat.export.model.interface import INPUT
from xfeat.export.model.progress import Progress
from xfeat.export.quantization.equalization import CENTRED, common_mean
from xfeat.export.quantization.gptq import gptq_round
from xfeat.export.quantization.subgraphs import run_node
from xfeat.featurize.images.preprocess import Pixels

Array = NDArray[Any]

# A factor outside these limits comes from a channel that hardly varies on these images.
_FACTOR_LIMITS = (0.8, 1.25)
_MAX_BIAS_LEVEL = 2**29


@dataclass(frozen=True, kw_only=True)
class ActivationScale:
    """How a tensor is stored in uint8.

    Attributes:
        step: the size of one level.
        zero_point: the level of 0.
    """

    step: np.float32
    zero_point: np.uint8

    def quantized(self, values: Array) -> Array:
        """Return the nearest values that can be stored, float32.

        Halves are rounded up, so that grey levels minus a mean of 127.5 stay distinct; the bias corrects the half.
        """
        levels = np.floor(values / self.step + 0.5)
        zero = float(self.zero_point)
        np.clip(levels, -zero, 255 - zero, out=levels)
        return (levels * self.step).astype(np.float32, copy=False)


@dataclass(frozen=True, kw_only=True)
class Int8Convolution:
    """A convolution in 8 bits.

    Attributes:
        weight: int8, shaped as the float weight.
        scale: float32, one per output channel.
        bias: float32; it corrects the shift that quantisation causes up to here.
    """

    weight: NDArray[np.int8]
    scale: NDArray[np.float32]
    bias: NDArray[np.float32]


@dataclass(frozen=True)
class QuantizedLayers:
    """The result of quantising a backbone.

    Attributes:
        activations: tensor between layers to its scale.
        convolutions: name of a convolution to its 8-bit form.

    Sums are quantised for the convolutions that read them, but not along the skip connections, where errors would add
    up.
    """

    activations: dict[str, ActivationScale] = field(default_factory=dict)
    convolutions: dict[str, Int8Convolution] = field(default_factory=dict)


def quantize_layers(
    model: onnx.ModelProto, pixels: Pixels, float_layers: Collection[str] = (), progress: Progress | None = None
) -> QuantizedLayers:
    """Quantise weights and activations of convolutions, computing every image in float32 and in 8 bits side by side.

    After each convolution a factor and a shift per channel make its output as close as possible to float32's, given
    inputs that are already quantised. Errors therefore do not accumulate: with only the means corrected, and only at
    the end, the squared error of the features of X-rays was eight times as large.

    Args:
        model: the backbone, float32, BatchNorms folded.
        pixels: uint8 (n, S, S, 3), training images; about 50 MB of memory each at 224 × 224.
        float_layers: names of convolutions that stay in float32.
        progress: called with the nodes done and their number.

    Source: empirical bias correction, Nagel et al. 2021 (arXiv:2106.08295), section 3.3; here with a factor as well.
    """
    graph = Graph(model)
    layers = QuantizedLayers()
    wanted = _tensors_to_quantize(graph, float_layers)
    exact: dict[str, Array] = {INPUT: to_nchw(pixels)}  # float32
    found: dict[str, Array] = dict(exact)  # 8 bits
    sums: dict[str, Array] = {}  # the same, not quantised
    nodes = graph.nodes
    last_use = {name: place for place, node in enumerate(nodes) for name in node.input}
    for place, node in enumerate(nodes):
        name = node.output[0]
        if node.op_type == "Conv" and node.name not in float_layers:
            (exact[name],) = run_node(graph, node, exact)
            step = layers.activations[node.input[0]].step
            found[name], layers.convolutions[node.name] = _quantize_convolution(graph, node, found, exact[name], step)
        else:
            exact[name], found[name] = run_node(graph, node, exact, found | sums if node.op_type == "Add" else found)
        if name in wanted:
            if node.op_type == "Add":
                sums[name] = found[name]
            layers.activations[name] = _activation_scale(graph, name, exact[name])
            found[name] = layers.activations[name].quantized(found[name])
        for used in [used for used in node.input if last_use[used] == place]:
            for values in (exact, found, sums):
                values.pop(used, None)
        if progress is not None:
            progress(place + 1, len(nodes))
    return layers


def min_max_scale(values: Array) -> ActivationScale:
    """Return the scale that covers all values, and 0.

    A narrower range has a smaller squared error on these values, but cuts off more of the values of other images.
    """
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    step = max((high - low) / 255, 1e-8)
    return ActivationScale(step=np.float32(step), zero_point=np.uint8(np.clip(round(-low / step), 0, 255)))


def channel_scales(weight: Array) -> NDArray[np.float32]:
    """Return the step per row of the first axis for which the largest weight is level 127."""
    largest = np.abs(weight.reshape(len(weight), -1)).max(1)
    scale: NDArray[np.float32] = np.maximum(largest / 127, np.finfo(np.float32).tiny).astype(np.float32)
    return scale


def dequantized(weight: NDArray[np.int8], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return float32 weights for int8 ones with a scale per row of the first axis."""
    return weight.astype(np.float32) * scale.reshape(-1, *(1,) * (weight.ndim - 1))


def _activation_scale(graph: Graph, name: str, values: Array) -> ActivationScale:
    mean = common_mean(graph) if name == CENTRED else None
    if mean is None:
        return min_max_scale(values)
    return ActivationScale(step=np.float32(1), zero_point=np.uint8(mean))  # the levels are the image's grey levels


def _quantize_convolution(
    graph: Graph, node: onnx.NodeProto, found: dict[str, Array], exact: Array, step: np.float32
) -> tuple[Array, Int8Convolution]:
    """Return the output (N, O, h, w) of a quantised convolution, corrected towards ``exact``, and the convolution."""
    float_weight = graph.weight(node.input[1])
    bias = graph.weight(node.input[2]).astype(np.float64)
    # onnxruntime stores a bias in 32 bits, in units of both steps. The tiny steps of dead channels would overflow it.
    scale = np.maximum(channel_scales(float_weight), (np.abs(bias) / (float(step) * _MAX_BIAS_LEVEL)))
    scale = scale.astype(np.float32)
    weight = gptq_round(float_weight, scale, node, found[node.input[0]])
    (output,) = run_node(graph, node, found | {node.input[1]: dequantized(weight, scale)})
    factor, shift = least_squares(output, exact)
    convolution = Int8Convolution(
        weight=weight, scale=(scale * factor).astype(np.float32), bias=(bias * factor + shift).astype(np.float32)
    )
    output *= factor.astype(np.float32).reshape(1, -1, 1, 1)
    output += shift.astype(np.float32).reshape(1, -1, 1, 1)
    return output, convolution


def least_squares(given: Array, wanted: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return factor and shift (C,) that map tensors (N, C, h, w) to others by least squares."""
    means = [each.mean((0, 2, 3), dtype=np.float64) for each in (given, wanted)]
    centred = given - means[0].astype(np.float32).reshape(1, -1, 1, 1)
    variance = np.square(centred).mean((0, 2, 3), dtype=np.float64)
    covariance = (centred * wanted).mean((0, 2, 3), dtype=np.float64)
    factor = np.ones_like(variance)
    np.divide(covariance, variance, out=factor, where=variance > 1e-9)
    factor = factor.clip(*_FACTOR_LIMITS)
    return factor, means[1] - factor * means[0]


def _tensors_to_quantize(graph: Graph, float_layers: Collection[str]) -> set[str]:
    """Return the tensors that convolutions in 8 bits read and compute."""
    readers = graph.readers()
    wanted: set[str] = set()
    for node in graph.convolutions:
        if node.name not in float_layers:
            following = readers.get(node.output[0], [])
            # A Clip after a convolution is part of it: quantising before it would waste levels.
            bounded = len(following) == 1 and following[0].op_type in ("Clip", "Relu")
            wanted |= {node.input[0], following[0].output[0] if bounded else node.output[0]}
    return wanted - {INPUT}
