"""The first layer in 8 bits: it reads whole grey levels, and the channel that rounding hurts most gets finer levels."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

from xfeat.export.build.assemble import INPUT
from xfeat.export.quantization.equalization import CENTRED, common_mean
from xfeat.export.quantization.onnx_graph import Graph, attribute

_STEM = {"group": 1, "strides": [2, 2], "dilations": [1, 1], "kernel_shape": [3, 3], "pads": [0, 0, 1, 1]}
_LAST_LEVEL = 255


def dither_stem(model: onnx.ModelProto) -> None:
    """Give one channel of the first layer finer levels than the rest, without changing what the model answers.

    Lite0's first layer has a channel of edges that deviates by less than a level and is magnified by the second layer:
    more than half of what rounding the first layer's output costs. And it has four channels that no image reaches,
    since their weights are zero. They become copies of the former, each a fraction of a level higher. Rounded, each is
    off by something else, and their mean, which the block's last layer reads, is off by little.

    Where the second layer pads, and where a bound cuts a copy off first, that changes less than a level does. A model
    whose first block has another form, or no such channel, is left as it is.

    Args:
        model: float32, equalised, its normalisation folded; changed in place.

    Source: subtractive dither, Lipshitz, Wannamaker and Vanderkooy 1992 (J. Audio Eng. Soc. 40, 355).
    """
    graph = Graph(model)
    first = graph.convolutions[0]
    behind = _unbranched(graph, first, 4)
    if [node.op_type for node in behind] != ["Clip", "Conv", "Clip", "Conv"] or common_mean(graph) is None:
        return
    bound, second, second_bound, last = behind
    if attribute(second, "group", 1) == 1 or attribute(last, "group", 1) != 1:
        return
    names = [name for node in (first, second, last) for name in node.input[1:]]
    weight, bias, kernel, offset, mix, sums = weights = [graph.weight(name).astype(np.float64) for name in names]
    unreached = _unreached(graph, first)
    sums += mix[:, unreached, 0, 0] @ offset[unreached].clip(*(graph.weight(name) for name in second_bound.input[1:]))
    # a rounding error of a level reaches the last layer's outputs by the second layer's weights and its own
    cost = np.square(kernel).sum((1, 2, 3)) * np.square(mix).sum((0, 2, 3))
    cost[unreached] = 0
    dearest, copies = int(cost.argmax()), len(unreached) + 1
    level = float(graph.weight(bound.input[2])) / _LAST_LEVEL
    for place, channel in enumerate(unreached, 1):
        higher = level * place / copies
        weight[channel], bias[channel] = weight[dearest], bias[dearest] + higher
        kernel[channel], offset[channel] = kernel[dearest], offset[dearest] - higher * kernel[dearest].sum()
    mix[:, [dearest, *unreached]] = mix[:, [dearest]] / copies
    for name, values in zip(names, weights, strict=True):
        graph.set_weight(name, values.astype(np.float32))


def read_grey_levels(model: onnx.ModelProto) -> None:
    """Let the first layer of a model in 8 bits read the image's grey levels, not rounded again.

    The level that stands for 0 does what the subtraction of the mean did. A layer of 3 × 3 over every second pixel
    becomes one of 2 × 2 over blocks of 2 × 2 pixels, of 12 channels instead of 3: onnxruntime computes layers in 8 bits
    fast where they read a multiple of 4 channels. A first layer in float32 is left as it is.

    Args:
        model: 8 bits written into it; changed in place.
    """
    graph = Graph(model)
    first = graph.convolutions[0]
    if graph.producers()[first.input[0]].op_type != "DequantizeLinear" or common_mean(graph) is None:
        return
    step, centre = f"{CENTRED}_step", f"{CENTRED}_zero"  # one grey level, and the one that stands for 0
    graph.set_weight("black", np.asarray(np.uint8(0)))
    make, levels = onnx.helper.make_node, "grey_levels"
    nodes = [make("QuantizeLinear", [INPUT, step, "black"], [levels], name=levels)]
    if _is_stem(first) and _side(model) % 2 == 0:
        nodes.append(make("SpaceToDepth", [levels], ["grey_blocks"], blocksize=2, name="grey_blocks"))
        levels = "grey_blocks"
        _over_blocks(graph, first)
    nodes.append(make("DequantizeLinear", [levels, step, centre], ["grey"], name="grey"))
    first.input[0] = "grey"
    gone = {CENTRED, f"{CENTRED}_levels", f"{CENTRED}_rounded"}
    graph.replace_nodes([*nodes, *(node for node in graph.nodes if not gone & set(node.output))])


def _unbranched(graph: Graph, node: onnx.NodeProto, count: int) -> list[onnx.NodeProto]:
    """Return the next nodes as long as each is the only reader of the one before."""
    readers = graph.readers()
    found: list[onnx.NodeProto] = []
    while len(found) < count and len(readers.get(node.output[0], [])) == 1:
        node = readers[node.output[0]][0]
        found.append(node)
    return found


def _unreached(graph: Graph, first: onnx.NodeProto) -> NDArray[np.intp]:
    """Return the channels of the first layer that are at most 0 for any image."""
    weight, bias = (graph.weight(name).astype(np.float64) for name in first.input[1:])
    mean = graph.weight(f"{CENTRED}_by").astype(np.float64)
    largest = np.maximum(weight * (_LAST_LEVEL - mean), weight * -mean).sum((1, 2, 3)) + bias
    return np.flatnonzero(largest <= 0)


def _is_stem(node: onnx.NodeProto) -> bool:
    return all(attribute(node, name, wanted) == wanted for name, wanted in _STEM.items())


def _side(model: onnx.ModelProto) -> int:
    return int(model.graph.input[0].type.tensor_type.shape.dim[2].dim_value)


def _over_blocks(graph: Graph, first: onnx.NodeProto) -> None:
    """Sort the levels (O, 3, 3, 3) of a first layer into (O, 12, 2, 2), as SpaceToDepth sorts pixels."""
    name = graph.producers()[first.input[1]].input[0]
    levels = graph.weight(name)
    outputs, channels = levels.shape[:2]
    padded = np.pad(levels, ((0, 0), (0, 0), (0, 1), (0, 1)))
    blocks = padded.reshape(outputs, channels, 2, 2, 2, 2).transpose(0, 3, 5, 1, 2, 4)
    graph.set_weight(name, np.ascontiguousarray(blocks.reshape(outputs, 4 * channels, 2, 2)))
    kept = [each for each in first.attribute if each.name not in ("strides", "kernel_shape")]
    del first.attribute[:]
    first.attribute.extend([*kept, onnx.helper.make_attribute("kernel_shape", [2, 2])])
