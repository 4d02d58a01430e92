"""Writing 8 bits into a model, as QuantizeLinear and DequantizeLinear nodes around what runtimes compute in 8 bits."""

from __future__ import annotations

import numpy as np
import onnx

from xfeat.export.build.graph import Graph, make_node
from xfeat.export.quantization.first_layer import read_grey_levels
from xfeat.export.quantization.rounding import ActivationScale, Int8Convolution, QuantizedLayers, channel_scales

# Smaller matrices stay in float32: storing them in 8 bits would save nothing that shows.
_MIN_MATRIX = 16_384


def write_layers(model: onnx.ModelProto, layers: QuantizedLayers) -> None:
    """Write quantised layers into the model that they were computed for.

    Biases stay float32: onnxruntime converts them to the integers that its convolutions add when it loads the file.

    Args:
        model: changed in place.
        layers: scales and 8-bit convolutions by name.
    """
    graph = Graph(model)
    sums = {node.output[0] for node in graph.nodes if node.op_type == "Add"}
    nodes = []
    for node in graph.nodes:
        exact = sums if node.op_type == "Add" else ()
        node.input[:] = [
            f"{name}_quantized" if name in layers.activations and name not in exact else name for name in node.input
        ]
        if node.name in layers.convolutions:
            nodes.append(_write_convolution(graph, node, layers.convolutions[node.name]))
        nodes.append(node)
        for name in node.output:
            if name in layers.activations:
                nodes += _write_activation(graph, name, layers.activations[name])
    graph.replace_nodes(nodes)
    read_grey_levels(model)


def store_matrices_in_8_bits(model: onnx.ModelProto) -> None:
    """Store the matrices of head and ood score in 8 bits with a scale per column, converted back where they are used.

    Per column, because the head's BatchNorms are folded in and widen the columns of narrow features. Casts and a
    product convert them: onnxruntime computes these once, when it loads the file, but a DequantizeLinear for every
    image, which took 29 % of the time of a whole model. The cast to int32 keeps OpenVINO 2026.4 from computing in
    8 bits itself: with a scale per column it crashes.
    """
    graph = Graph(model)
    made = []
    for name in [tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2]:
        matrix = graph.weight(name)
        if matrix.dtype != np.float32 or matrix.size < _MIN_MATRIX:
            continue
        scale = channel_scales(matrix.T)
        graph.set_weight(f"{name}_levels", np.rint(matrix / scale).astype(np.int8))
        graph.set_weight(f"{name}_scale", scale.reshape(1, -1))
        made += [
            make_node("Cast", [f"{name}_levels"], f"{name}_int32", to=onnx.TensorProto.INT32),
            make_node("Cast", [f"{name}_int32"], f"{name}_float", to=onnx.TensorProto.FLOAT),
            make_node("Mul", [f"{name}_float", f"{name}_scale"], f"{name}_dequantized"),
        ]
        for node in model.graph.node:
            node.input[:] = [f"{name}_dequantized" if each == name else each for each in node.input]
    graph.replace_nodes([*made, *graph.nodes])


def _write_convolution(graph: Graph, node: onnx.NodeProto, layer: Int8Convolution) -> onnx.NodeProto:
    """Store weight and bias, and return the node that converts the weight to float32."""
    name, zeros = node.input[1], f"zeros_{len(layer.scale)}"  # zero points shared by all weights of as many channels
    parts = [f"{name}_levels", f"{name}_scale", zeros]
    graph.set_weight(parts[0], layer.weight)
    graph.set_weight(parts[1], layer.scale)
    graph.set_weight(zeros, np.zeros(len(layer.scale), np.int8))
    graph.set_weight(f"{name}_bias_corrected", layer.bias)
    node.input[1:] = [f"{name}_dequantized", f"{name}_bias_corrected"]
    return make_node("DequantizeLinear", parts, node.input[1], axis=0)


def _write_activation(graph: Graph, name: str, scale: ActivationScale) -> list[onnx.NodeProto]:
    parts, levels = [f"{name}_step", f"{name}_zero_point"], f"{name}_levels"
    graph.set_weight(parts[0], np.asarray(scale.step))
    graph.set_weight(parts[1], np.asarray(scale.zero_point))
    return [
        make_node("QuantizeLinear", [name, *parts], levels),
        make_node("DequantizeLinear", [levels, *parts], f"{name}_quantized"),
    ]
