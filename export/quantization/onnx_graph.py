"""Reading and changing the graph of a traced model, and running parts of it. ONNX in, ONNX out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnxscript import optimizer

from xfeat.export.model.batches import batches, to_nchw
from xfeat.export.model.interface import INPUT, LOGITS
from xfeat.featurize.images.preprocess import Pixels
from xfeat.featurize.system.onnx_session import open_session


class Graph:
    """A model with lookups by name.

    Attributes:
        proto: the model, changed in place.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = proto
        self._weights = {tensor.name: tensor for tensor in proto.graph.initializer}

    @property
    def nodes(self) -> Sequence[onnx.NodeProto]:
        """All nodes, in the order of computation."""
        return list(self.proto.graph.node)

    @property
    def convolutions(self) -> list[onnx.NodeProto]:
        """All convolutions, in the order of computation."""
        return [node for node in self.nodes if node.op_type == "Conv"]

    def producers(self) -> dict[str, onnx.NodeProto]:
        """Return a mapping from tensor to the node that computes it."""
        return {name: node for node in self.nodes for name in node.output}

    def readers(self) -> dict[str, list[onnx.NodeProto]]:
        """Return a mapping from tensor to the nodes that read it."""
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                found.setdefault(name, []).append(node)
        return found

    def is_weight(self, name: str) -> bool:
        """Return whether a tensor is stored in the model."""
        return name in self._weights

    def weight(self, name: str) -> NDArray[Any]:
        """Return a stored tensor."""
        return onnx.numpy_helper.to_array(self._weights[name])

    def set_weight(self, name: str, values: NDArray[Any]) -> None:
        """Add or replace a stored tensor."""
        if name not in self._weights:
            self._weights[name] = self.proto.graph.initializer.add()
        self._weights[name].CopyFrom(onnx.numpy_helper.from_array(values, name))

    def insert_after(self, name: str, node: onnx.NodeProto, readers: Sequence[onnx.NodeProto]) -> None:
        """Insert a node with one output after the tensor ``name``; ``readers`` then read that output."""
        for reader in readers:
            reader.input[:] = [node.output[0] if each == name else each for each in reader.input]
        places = [place for place, each in enumerate(self.proto.graph.node) if name in each.output]
        self.proto.graph.node.insert(places[0] + 1 if places else 0, node)

    def replace_nodes(self, nodes: Sequence[onnx.NodeProto]) -> None:
        """Replace all nodes, and remove the weights that are then unused."""
        read = {name for node in nodes for name in node.input}
        graph, copy = self.proto.graph, onnx.GraphProto()
        copy.node.extend(nodes)
        copy.initializer.extend(tensor for tensor in graph.initializer if tensor.name in read)
        del graph.node[:], graph.initializer[:]
        graph.node.extend(copy.node)
        graph.initializer.extend(copy.initializer)
        self._weights = {tensor.name: tensor for tensor in self.proto.graph.initializer}


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that can be changed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """Return an attribute of a node."""
    found = (onnx.helper.get_attribute_value(each) for each in node.attribute if each.name == name)
    return next(found, default)


def after_pooling(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the nodes after the last feature maps: pooling, head, heatmap and ood score."""
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


def features_name(model: onnx.ModelProto) -> str:
    """Return the name of the features: the input of the head's first layer."""
    producers = Graph(model).producers()
    name = LOGITS
    while producers[name].op_type in ("Gemm", "Relu", "MatMul", "Add"):
        name = producers[name].input[0]
    return name


def cut_at(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Return the part of a model that computes the tensor ``name``, its only output."""
    part = copied(model)
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
    probe = copied(model)
    del probe.graph.output[:]
    for name in names:
        probe.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = _open(probe)
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
    session = _open(onnx.helper.make_model(part, opset_imports=proto.opset_import, ir_version=proto.ir_version))
    return [np.asarray(session.run(None, {name: each[name] for name in names})[0]) for each in inputs]


def _open(model: onnx.ModelProto) -> ort.InferenceSession:
    return open_session(model.SerializeToString())


def cleaned(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove what describes how a model was made, and opsets that it does not use."""
    used = {node.domain for node in model.graph.node}
    kept = [entry for entry in model.opset_import if entry.domain in used or entry.domain == ""]
    del model.opset_import[:], model.graph.value_info[:], model.metadata_props[:]
    model.opset_import.extend(kept)
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    model.graph.name = model.producer_name = "xfeat"
    model.producer_version = ""
    return model
