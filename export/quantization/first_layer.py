"""The first convolution in 8 bits reads the image's grey levels directly, in blocks of 2 × 2 pixels."""

from __future__ import annotations

import numpy as np
import onnx

from xfeat.export.build.graph import Graph, attribute, keep, make_node
from xfeat.export.model.interface import INPUT
from xfeat.export.quantization.equalization import CENTRED, common_mean

_STEM = {"group": 1, "strides": [2, 2], "dilations": [1, 1], "kernel_shape": [3, 3], "pads": [0, 0, 1, 1]}


def read_grey_levels(model: onnx.ModelProto) -> None:
    """Let the first convolution of a quantised model read the image's grey levels, which are 8 bits already.

    The zero point replaces the subtraction of the mean. A convolution of 3 × 3 with stride 2 becomes one of 2 × 2 over
    blocks of 2 × 2 pixels, with 12 input channels instead of 3: onnxruntime's convolutions in 8 bits are fast only if
    the number of input channels is a multiple of 4. A first convolution in float32, or channels with different means,
    are left unchanged.

    Args:
        model: quantised, changed in place.
    """
    graph = Graph(model)
    first = graph.convolutions[0]
    if graph.producers()[first.input[0]].op_type != "DequantizeLinear" or common_mean(graph) is None:
        return
    step, mean = f"{CENTRED}_step", f"{CENTRED}_zero_point"
    graph.set_weight("black", np.asarray(np.uint8(0)))
    levels = "grey_levels"
    nodes = [make_node("QuantizeLinear", [INPUT, step, "black"], levels)]
    side = model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    if side % 2 == 0 and all(attribute(first, name, wanted) == wanted for name, wanted in _STEM.items()):
        nodes.append(make_node("SpaceToDepth", [levels], "grey_blocks", blocksize=2))
        levels = "grey_blocks"
        _read_blocks(graph, first)
    nodes.append(make_node("DequantizeLinear", [levels, step, mean], "grey"))
    first.input[0] = "grey"
    unused = {CENTRED, f"{CENTRED}_levels", f"{CENTRED}_quantized"}
    graph.replace_nodes([*nodes, *(node for node in graph.nodes if not unused & set(node.output))])


def _read_blocks(graph: Graph, first: onnx.NodeProto) -> None:
    """Reorder the weights (O, 3, 3, 3) of the first convolution to (O, 12, 2, 2), as SpaceToDepth reorders pixels."""
    name = graph.producers()[first.input[1]].input[0]
    levels = graph.weight(name)
    outputs, channels = levels.shape[:2]
    padded = np.pad(levels, ((0, 0), (0, 0), (0, 1), (0, 1)))
    blocks = padded.reshape(outputs, channels, 2, 2, 2, 2).transpose(0, 3, 5, 1, 2, 4)
    graph.set_weight(name, np.ascontiguousarray(blocks.reshape(outputs, 4 * channels, 2, 2)))
    keep(first.attribute, lambda each: each.name not in ("strides", "kernel_shape"))
    first.attribute.append(onnx.helper.make_attribute("kernel_shape", [2, 2]))
