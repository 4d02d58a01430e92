"""Rounding a model to 8 bits in one pass from the input on, each layer making up for the error that reaches it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from xfeat.export.build.assemble import INPUT
from xfeat.export.model.batches import to_nchw
from xfeat.export.model.progress import Progress
from xfeat.export.quantization.equalization import CENTRED, common_mean
from xfeat.export.quantization.gptq import rounded_in_order
from xfeat.export.quantization.onnx_graph import Graph
from xfeat.featurize.images.preprocess import Pixels

Array = NDArray[Any]

# A slope further from 1 comes from a channel that hardly varies on these images.
_SLOPES = (0.8, 1.25)
_LARGEST_BIAS = 2**29


@dataclass(frozen=True, kw_only=True)
class Levels:
    """How a tensor is held in 8 unsigned bits.

    Attributes:
        step: what one level is worth.
        zero: the level of 0.
    """

    step: np.float32
    zero: np.uint8

    def round(self, values: Array) -> Array:
        """Return the nearest values that can be held, float32.

        Halves go up, so that grey levels with a mean of 127.5 taken off stay apart; their layer's bias takes the half.
        """
        levels = np.clip(np.floor(values / self.step + 0.5) + float(self.zero), 0, 255)
        return ((levels - float(self.zero)) * self.step).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A convolution in 8 bits.

    Attributes:
        weight: int8, as the float weight.
        scale: float32, one an output channel.
        bias: float32, with what the rounding before and in the layer shifts its output by taken off.
    """

    weight: NDArray[np.int8]
    scale: NDArray[np.float32]
    bias: NDArray[np.float32]


@dataclass(frozen=True)
class Rounded:
    """What a pass found.

    Attributes:
        tensors: between layers, name to steps.
        layers: name of the convolution to its weights.

    Sums are rounded where convolutions read them. What is added to them next takes them as they are, so that rounding
    does not add up along the skips.
    """

    tensors: dict[str, Levels] = field(default_factory=dict)
    layers: dict[str, Layer] = field(default_factory=dict)


def round_model(
    model: onnx.ModelProto,
    pixels: Pixels,
    *,
    float_layers: Collection[str] = (),
    progress: Progress | None = None,
) -> Rounded:
    """Round the weights and the inputs and outputs of convolutions, following both versions of every image.

    Behind each rounded convolution, factor and shift of every channel are set so that the channel is nearest to what
    float32 gives there, on inputs as rounded so far. Errors thus do not add up on the way: with the means alone put
    right at the end, features of X-rays were off by eight times as much (squared).

    Args:
        model: the backbone, float32, BatchNorms folded.
        pixels: uint8 (n, S, S, 3), images of the training; about 50 MB of memory each at 224 × 224.
        float_layers: names of convolutions that stay as they are.
        progress: told the nodes done and their number.

    Source: empirical bias correction, Nagel et al. 2021 (arXiv:2106.08295), section 3.3; here with a factor besides.
    """
    graph = Graph(model)
    rounded = Rounded()
    wanted = _tensors_to_round(graph, float_layers)
    true: dict[str, Array] = {INPUT: to_nchw(pixels)}
    found: dict[str, Array] = dict(true)
    nodes = graph.nodes
    sums: dict[str, Array] = {}
    last_use = {name: place for place, node in enumerate(nodes) for name in node.input}
    for place, node in enumerate(nodes):
        name = node.output[0]
        true[name] = run_node(graph, node, true)
        if node.op_type == "Conv" and node.name not in float_layers:
            step = rounded.tensors[node.input[0]].step
            found[name], rounded.layers[node.name] = _round_layer(graph, node, found, true[name], step)
        else:
            found[name] = run_node(graph, node, found | sums if node.op_type == "Add" else found)
        if name in wanted:
            if node.op_type == "Add":
                sums[name] = found[name]
            rounded.tensors[name] = _levels(graph, name, true[name])
            found[name] = rounded.tensors[name].round(found[name])
        for name in node.input:
            if last_use[name] == place:
                for values in (true, found, sums):
                    values.pop(name, None)
        if progress is not None:
            progress(place + 1, len(nodes))
    return rounded


def round_each(model: onnx.ModelProto, pixels: Pixels) -> Rounded:
    """Round every layer as if it were the only one: its input comes from float32.

    Args:
        model: as for :func:`round_model`.
        pixels: the same.
    """
    graph = Graph(model)
    each = Rounded()
    wanted = _tensors_to_round(graph, ())
    true: dict[str, Array] = {INPUT: to_nchw(pixels)}
    last_use = {name: place for place, node in enumerate(graph.nodes) for name in node.input}
    for place, node in enumerate(graph.nodes):
        name = node.output[0]
        true[name] = run_node(graph, node, true)
        if name in wanted:
            each.tensors[name] = _levels(graph, name, true[name])
        if node.op_type == "Conv":
            source = node.input[0]
            levels = each.tensors[source]
            given = {source: levels.round(true[source])}
            each.layers[node.name] = _round_layer(graph, node, given, true[name], levels.step)[1]
        for read in node.input:
            if last_use[read] == place:
                true.pop(read, None)
    return each


def only(model: onnx.ModelProto, each: Rounded, layer: str) -> Rounded:
    """Return a rounding of one convolution, with what it reads and makes, that leaves the others as they are.

    Args:
        model: the one that was rounded.
        each: from :func:`round_each`.
        layer: name of the convolution.
    """
    graph = Graph(model)
    names = _tensors_to_round(graph, {node.name for node in graph.convolutions} - {layer})
    return Rounded(tensors={name: each.tensors[name] for name in names}, layers={layer: each.layers[layer]})


def covering(values: Array) -> Levels:
    """Return the steps that hold the whole range of values, and 0.

    Narrower ones have a smaller squared error on these values, but cut off more of what other images reach.
    """
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    step = max((high - low) / 255, 1e-8)
    return Levels(step=np.float32(step), zero=np.uint8(np.clip(round(-low / step), 0, 255)))


def run_node(
    graph: Graph, node: onnx.NodeProto, values: dict[str, Array], weights: dict[str, Array] | None = None
) -> Array:
    """Return the first output of one node; ``weights`` take the place of stored ones."""
    given = list(dict.fromkeys(name for name in node.input if name and not graph.is_weight(name)))
    stored = [name for name in dict.fromkeys(node.input) if graph.is_weight(name)]
    tensor = onnx.helper.make_tensor_value_info
    inputs = [tensor(name, onnx.helper.np_dtype_to_tensor_dtype(values[name].dtype), None) for name in given]
    outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in node.output]
    taken = {name: graph.weight(name) for name in stored} | (weights or {})
    constants = [onnx.numpy_helper.from_array(each, name) for name, each in taken.items()]
    part = onnx.helper.make_graph([node], "node", inputs, outputs, constants)
    model = onnx.helper.make_model(part, opset_imports=graph.proto.opset_import, ir_version=graph.proto.ir_version)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {name: values[name] for name in given})[0])


def nearest_weights(weight: Array) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return int8 weights and their scales, one a row of the first axis, for float ones."""
    scale = row_scale(weight)
    levels = np.round(weight / scale.reshape(-1, *(1,) * (weight.ndim - 1)))
    return levels.clip(-127, 127).astype(np.int8), scale


def row_scale(weight: Array) -> NDArray[np.float32]:
    """Return what a level is worth in each row of the first axis, the largest weight being the last level."""
    rows = np.abs(weight.reshape(len(weight), -1)).max(1)
    scale: NDArray[np.float32] = np.maximum(rows / 127, np.finfo(np.float32).tiny).astype(np.float32)
    return scale


def widened(weight: NDArray[np.int8], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return float32 weights of int8 ones."""
    return weight.astype(np.float32) * scale.reshape(-1, *(1,) * (weight.ndim - 1))


def _levels(graph: Graph, name: str, values: Array) -> Levels:
    """Return the steps of a tensor: of the image, if they can be its grey levels, or :func:`covering` its values."""
    mean = common_mean(graph) if name == CENTRED else None
    return covering(values) if mean is None else Levels(step=np.float32(1), zero=np.uint8(mean))


def _round_layer(
    graph: Graph, node: onnx.NodeProto, found: dict[str, Array], true: Array, step: np.float32
) -> tuple[Array, Layer]:
    given = graph.weight(node.input[1])
    bias = graph.weight(node.input[2]).astype(np.float64)
    # onnxruntime holds a bias in 32 bits, in units of both steps: too small ones, of dead channels, would overflow it
    scale = np.maximum(row_scale(given), (np.abs(bias) / (float(step) * _LARGEST_BIAS)).astype(np.float32))
    weight = rounded_in_order(given, scale, node, found[node.input[0]])
    output = run_node(graph, node, found, {node.input[1]: widened(weight, scale)})
    slope, shift = _line(output, true)
    layer = Layer(
        weight=weight, scale=(scale * slope).astype(np.float32), bias=(bias * slope + shift).astype(np.float32)
    )
    line = [each.astype(np.float32).reshape(1, -1, 1, 1) for each in (slope, shift)]
    return output * line[0] + line[1], layer


def _line(given: Array, wanted: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return slope and shift (C,) by least squares, from (N, C, h, w) to the same."""
    means = [each.mean((0, 2, 3), dtype=np.float64) for each in (given, wanted)]
    centred = given - means[0].astype(np.float32).reshape(1, -1, 1, 1)
    variance = np.square(centred).mean((0, 2, 3), dtype=np.float64)
    covariance = (centred * wanted).mean((0, 2, 3), dtype=np.float64)
    slope = np.ones_like(variance)
    np.divide(covariance, variance, out=slope, where=variance > 1e-9)
    slope = slope.clip(*_SLOPES)
    return slope, means[1] - slope * means[0]


def _tensors_to_round(graph: Graph, float_layers: Collection[str]) -> set[str]:
    """Return the tensors that convolutions in 8 bits read and make."""
    readers = graph.readers()
    wanted: set[str] = set()
    for node in graph.convolutions:
        if node.name not in float_layers:
            behind = readers.get(node.output[0], [])
            # A bound behind a convolution is part of it: rounding in front of it would cost levels for nothing.
            bounded = len(behind) == 1 and behind[0].op_type in ("Clip", "Relu")
            wanted |= {node.input[0], behind[0].output[0] if bounded else node.output[0]}
    return wanted - {INPUT}
