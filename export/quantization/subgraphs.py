"""Parts of a traced model: found, cut out, run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxscript import optimizer

from xfeat.export.build.compose import ENCODED
from xfeat.export.build.graph import Graph
from xfeat.export.model.batches import batches, to_nchw
from xfeat.export.model.interface import INPUT, LOGITS
from xfeat.featurize.images.preprocess import Pixels
from xfeat.featurize.system.onnx_session import open_session


def after_pooling(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the nodes after the encoder or the last feature maps: pooling, head, heatmap and ood score."""
    if is_composed(model):
        encoder = {node.name for node in cut_at(model, ENCODED).graph.node}
        return [node for node in model.graph.node if node.name not in encoder]
    leads_to_convolution: set[str] = set()
    for node in reversed(model.graph.node):
        if node.op_type == "Conv" or leads_to_convolution & set(node.output):
            leads_to_convolution.update(node.input)
    reached: set[str] = set()
    nodes = []
    for node in model.graph.node:
        # squeeze-and-excite also pools, but convolutions follow
        starts = node.op_type in ("ReduceMean", "Reshape") and not leads_to_convolution & set(node.output)
        if starts or reached & set(node.input):
            reached.update(node.output)
            nodes.append(node)
    return nodes


def is_composed(model: onnx.ModelProto) -> bool:
    """Return whether a model has the encoder of another file."""
    return any(ENCODED in node.output for node in model.graph.node)


def features_name(model: onnx.ModelProto) -> str:
    """Return the name of the features: the input of the head's first layer."""
    producers = Graph(model).producers()
    name = LOGITS
    while name != ENCODED and producers[name].op_type in ("Gemm", "Relu", "MatMul", "Add"):
        name = producers[name].input[0]
    return name


def cut_at(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Return the part of a model that computes the tensor ``name``, its only output."""
    part = deepcopy(model)
    del part.graph.output[:], part.graph.value_info[:]
    part.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    optimizer.remove_unused_nodes(part)
    Graph(part).replace_nodes(part.graph.node)
    return part


def run_model(
    model: onnx.ModelProto,
    pixels: Pixels,
    names: Sequence[str],
    reduce: Callable[[NDArray[np.float32]], NDArray[np.float32]] = lambda values: values,
) -> list[NDArray[np.float32]]:
    """Return any tensors (n, …) of a model for images uint8 (n, S, S, 3), reduced batch by batch."""
    probe = deepcopy(model)
    del probe.graph.output[:]
    for name in names:
        probe.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = open_session(probe.SerializeToString())
    answers = [
        [reduce(values) for values in session.run(list(names), {INPUT: to_nchw(batch)})] for batch in batches(pixels)
    ]
    return [np.concatenate(each) for each in zip(*answers, strict=True)]


def run_node(graph: Graph, node: onnx.NodeProto, *inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """Return the first output of one node for each of some inputs, by name; other inputs are stored weights."""
    names = [name for name in dict.fromkeys(node.input) if name in inputs[0]]
    weights = [name for name in dict.fromkeys(node.input) if name and name not in names]
    tensor, dtype = onnx.helper.make_tensor_value_info, onnx.helper.np_dtype_to_tensor_dtype
    part = onnx.helper.make_graph(
        [node],
        "node",
        [tensor(name, dtype(inputs[0][name].dtype), None) for name in names],
        [onnx.helper.make_empty_tensor_value_info(name) for name in node.output],
        [onnx.numpy_helper.from_array(graph.weight(name), name) for name in weights],
    )
    proto = graph.proto
    model = onnx.helper.make_model(part, opset_imports=proto.opset_import, ir_version=proto.ir_version)
    session = open_session(model.SerializeToString())
    return [np.asarray(session.run(None, {name: each[name] for name in names})[0]) for each in inputs]
