"""Writing 8 bits into a model: QuantizeLinear and DequantizeLinear around what runtimes then compute in 8 bits."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

from xfeat.export.quantization.first_layer import read_grey_levels
from xfeat.export.quantization.four_bit_head import HalfBytes
from xfeat.export.quantization.onnx_graph import Graph
from xfeat.export.quantization.rounding import Layer, Levels, Rounded, nearest_weights

# Matrices with fewer numbers stay as they are: they weigh nothing.
_SMALL = 16_384


def write_rounded(model: onnx.ModelProto, rounded: Rounded) -> None:
    """Put what a pass found into the model: tensors between layers through 8 bits, convolutions with 8-bit weights.

    Biases stay float32: onnxruntime makes the whole numbers that its convolutions add of them when it loads the file.

    Args:
        model: the one that was rounded, changed in place.
        rounded: steps and layers by name.
    """
    graph = Graph(model)
    sums = {node.output[0] for node in graph.nodes if node.op_type == "Add"}
    nodes = []
    for node in graph.nodes:
        kept = sums if node.op_type == "Add" else ()
        node.input[:] = [
            f"{name}_rounded" if name in rounded.tensors and name not in kept else name for name in node.input
        ]
        if node.name in rounded.layers:
            nodes.append(_write_layer(graph, node, rounded.layers[node.name]))
        nodes.append(node)
        for name in node.output:
            if name in rounded.tensors:
                nodes += _write_levels(graph, name, rounded.tensors[name])
    graph.replace_nodes(nodes)
    read_grey_levels(model)
    graph = Graph(model)
    _keep_in_float(graph, [node for node in graph.convolutions if node.name not in rounded.layers])


def store_matrices_in_8_bits(model: onnx.ModelProto) -> None:
    """Replace the head's and the distance's matrices by 8-bit ones with a scale a column, widened where used."""
    graph = Graph(model)
    names = [tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2]
    matrices = {name: graph.weight(name) for name in names}
    large = {name: each for name, each in matrices.items() if each.dtype == np.float32 and each.size >= _SMALL}
    nodes = []
    for place, (name, values) in enumerate(large.items()):
        same = [other for other in list(large)[:place] if np.array_equal(large[other].T, values)]
        if same:  # folding constants has written one of them twice, the second time turned
            nodes.append(onnx.helper.make_node("Transpose", [f"{same[0]}_widened"], [f"{name}_widened"], perm=[1, 0]))
        else:
            nodes += _widen_once(graph, name, values)
    for node in graph.nodes:
        node.input[:] = [f"{each}_widened" if each in large else each for each in node.input]
    graph.replace_nodes([*nodes, *graph.nodes])


def store_matrix_in_4_bits(model: onnx.ModelProto, name: str, matrix: HalfBytes) -> None:
    """Store a matrix two numbers to a byte, unpacked where used; the bias of its layer takes what rounding shifts.

    The file has ``16 a + b`` in a signed byte, a in the left half of the columns and b in the right one. Since b is at
    most 7, rounding a sixteenth of it gives a: operators that every runtime has and computes once, when it loads the
    file.

    Args:
        model: changed in place.
        name: the weight of one Gemm, and of products that read it as well.
        matrix: what takes its place.
    """
    graph = Graph(model)
    left, right = np.split(matrix.levels, 2, axis=1)
    stored = {"levels": left * np.int8(16) + right, "rows": matrix.rows, "columns": matrix.columns}
    for part, values in (stored | {"byte": np.float32(16), "part": np.float32(1 / 16)}).items():
        graph.set_weight(f"{name}_{part}", np.asarray(values))
    for node in graph.nodes:
        if node.op_type == "Gemm" and node.input[1] == name:
            graph.set_weight(f"{name}_bias_rounded", matrix.bias)
            node.input[2] = f"{name}_bias_rounded"
        node.input[:] = [f"{name}_widened" if each == name else each for each in node.input]
    steps = (
        ("Mul", ("whole", "part"), "sixteenth"),
        ("Round", ("sixteenth",), "left"),
        ("Mul", ("left", "byte"), "left_bits"),
        ("Sub", ("whole", "left_bits"), "right"),
        ("Concat", ("left", "right"), "unscaled"),
        ("Mul", ("unscaled", "rows"), "scaled"),
        ("Mul", ("scaled", "columns"), "widened"),
    )
    nodes = _as_float(name, "whole")
    for operator, given, made in steps:
        read = [f"{name}_{each}" for each in given]
        nodes.append(onnx.helper.make_node(operator, read, [f"{name}_{made}"], name=f"{name}_{made}"))
        if operator == "Concat":
            nodes[-1].attribute.append(onnx.helper.make_attribute("axis", 1))
    graph.replace_nodes([*nodes, *graph.nodes])


def shorten_names(model: onnx.ModelProto) -> None:
    """Number the tensors inside a model instead of naming them, which takes as much room as all biases."""
    outside = {each.name for each in (*model.graph.input, *model.graph.output)}
    short: dict[str, str] = {"": ""}
    for place, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}{place}"
        for names in (node.input, node.output):
            names[:] = [name if name in outside else short.setdefault(name, f"t{len(short)}") for name in names]
    for tensor in model.graph.initializer:
        tensor.name = short.get(tensor.name, tensor.name)


def _keep_in_float(graph: Graph, layers: list[onnx.NodeProto]) -> None:
    """Stop onnxruntime from rounding layers of its own accord, their weights with one scale for all channels.

    It does so (WeightBiasQuantization in its sources) where a float convolution reads 8 bits and writes 8 bits; a
    maximum with the lowest number in between changes nothing else.
    """
    producers = graph.producers()
    for node in layers:
        source = node.input[0]
        if source in producers and producers[source].op_type == "DequantizeLinear":
            graph.set_weight("lowest", np.array(np.finfo(np.float32).min))
            kept = onnx.helper.make_node("Max", [source, "lowest"], [f"{node.name}_in_float"], name=f"{node.name}_max")
            graph.insert_behind(source, kept, [node])


def _write_layer(graph: Graph, node: onnx.NodeProto, layer: Layer) -> onnx.NodeProto:
    name, bias = node.input[1], f"{node.input[1]}_bias_rounded"
    graph.set_weight(bias, layer.bias)
    node.input[1:] = [f"{name}_widened", bias]
    return _widen(graph, name, layer.weight, layer.scale)


def _widen_once(graph: Graph, name: str, values: NDArray[np.float32]) -> list[onnx.NodeProto]:
    """Store a matrix and return the nodes that make float32 of it when a runtime loads the file, as ``…_widened``.

    A scale a column, because the head's BatchNorms are folded in and widen the columns of narrow features. onnxruntime
    computes casts and products of constants once, but a DequantizeLinear for every image: that was 29 % of the time of
    a whole model.
    """
    weight, scale = nearest_weights(values.T)
    graph.set_weight(f"{name}_levels", np.ascontiguousarray(weight.T))
    graph.set_weight(f"{name}_scale", scale.reshape(1, -1))
    parts = [f"{name}_unscaled", f"{name}_scale"]
    scaled = onnx.helper.make_node("Mul", parts, [f"{name}_widened"], name=f"{name}_widen")
    return [*_as_float(name, "unscaled"), scaled]


def _as_float(name: str, made: str) -> list[onnx.NodeProto]:
    """Return the nodes that make float32 of the int8 levels of a matrix.

    The detour through int32 keeps OpenVINO 2026.4 from computing in 8 bits itself: with a scale a column it crashes.
    """
    steps = (("levels", "int32", onnx.TensorProto.INT32), ("int32", made, onnx.TensorProto.FLOAT))
    return [
        onnx.helper.make_node("Cast", [f"{name}_{given}"], [f"{name}_{cast}"], name=f"{name}_{cast}", to=to)
        for given, cast, to in steps
    ]


def _widen(graph: Graph, name: str, weight: NDArray[np.int8], scale: NDArray[np.float32]) -> onnx.NodeProto:
    """Store a weight and return the node that makes float32 of it, as ``…_widened``."""
    zeros = f"zeros_{len(scale)}"  # shared by all weights of as many scales
    for part, values in ((f"{name}_levels", weight), (f"{name}_scale", scale), (zeros, np.zeros(len(scale), np.int8))):
        graph.set_weight(part, values)
    parts = [f"{name}_levels", f"{name}_scale", zeros]
    return onnx.helper.make_node("DequantizeLinear", parts, [f"{name}_widened"], name=f"{name}_widen", axis=0)


def _write_levels(graph: Graph, name: str, levels: Levels) -> list[onnx.NodeProto]:
    graph.set_weight(f"{name}_step", np.asarray(levels.step))
    graph.set_weight(f"{name}_zero", np.asarray(levels.zero))
    parts = [f"{name}_step", f"{name}_zero"]
    return [
        onnx.helper.make_node("QuantizeLinear", [name, *parts], [f"{name}_levels"], name=f"{name}_quantize"),
        onnx.helper.make_node(
            "DequantizeLinear", [f"{name}_levels", *parts], [f"{name}_rounded"], name=f"{name}_dequantize"
        ),
    ]
