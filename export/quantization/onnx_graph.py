"""A traced model's graph: who makes a tensor, who reads it, where the backbone ends. ONNX in, ONNX out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnxscript import optimizer

from xfeat.export.build.assemble import INPUT
from xfeat.export.model.batches import batches, to_nchw
from xfeat.export.model.outputs import CORE_OUTPUTS
from xfeat.featurize.images.preprocess import Pixels


class Graph:
    """A model to look things up in, and to change.

    Attributes:
        proto: the model, changed in place.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = proto
        self._weights = {tensor.name: tensor for tensor in proto.graph.initializer}

    @property
    def nodes(self) -> Sequence[onnx.NodeProto]:
        """All of them, each behind those it reads from."""
        return list(self.proto.graph.node)

    @property
    def convolutions(self) -> list[onnx.NodeProto]:
        """From the input on."""
        return [node for node in self.nodes if node.op_type == "Conv"]

    def producers(self) -> dict[str, onnx.NodeProto]:
        """Return tensor to the node that makes it."""
        return {name: node for node in self.nodes for name in node.output}

    def readers(self) -> dict[str, list[onnx.NodeProto]]:
        """Return tensor to the nodes that read it."""
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                found.setdefault(name, []).append(node)
        return found

    def is_weight(self, name: str) -> bool:
        """Whether a tensor is stored in the model."""
        return name in self._weights

    def weight(self, name: str) -> NDArray[Any]:
        """Return a stored tensor."""
        return onnx.numpy_helper.to_array(self._weights[name])

    def set_weight(self, name: str, values: NDArray[Any]) -> None:
        """Store a tensor, anew or for the first time."""
        if name not in self._weights:
            self._weights[name] = self.proto.graph.initializer.add()
        self._weights[name].CopyFrom(onnx.numpy_helper.from_array(values, name))

    def insert_behind(self, name: str, node: onnx.NodeProto, readers: Sequence[onnx.NodeProto]) -> None:
        """Put a node of one output behind the tensor ``name``; ``readers`` read the node instead."""
        for reader in readers:
            reader.input[:] = [node.output[0] if each == name else each for each in reader.input]
        places = [place for place, each in enumerate(self.proto.graph.node) if name in each.output]
        self.proto.graph.node.insert(places[0] + 1 if places else 0, node)

    def replace_nodes(self, nodes: Sequence[onnx.NodeProto]) -> None:
        """Put other nodes in place of all; weights that none of them reads leave."""
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del self.proto.graph.node[:]
        self.proto.graph.node.extend(kept)
        read = {name for node in kept for name in node.input}
        tensors = [tensor for tensor in self.proto.graph.initializer if tensor.name in read]
        copies = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in tensors]
        del self.proto.graph.initializer[:]
        self.proto.graph.initializer.extend(copies)
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
    """Return the nodes behind the last maps: pooling, head, heatmap and distance."""
    leads_to_convolution: set[str] = set()
    for node in reversed(model.graph.node):
        if node.op_type == "Conv" or leads_to_convolution & set(node.output):
            leads_to_convolution.update(node.input)
    reached: set[str] = set()
    nodes = []
    for node in model.graph.node:
        # squeeze-and-excite pools inside the backbone: convolutions follow
        starts = node.op_type in ("ReduceMean", "Reshape") and not leads_to_convolution & set(node.output)
        if starts or reached & set(node.input):
            reached.update(node.output)
            nodes.append(node)
    return nodes


def features_name(model: onnx.ModelProto) -> str:
    """Return the name of the features: what the first layer of the head multiplies."""
    producers = {name: node for node in model.graph.node for name in node.output}
    node = producers[CORE_OUTPUTS[1]]
    while True:
        source = producers[node.input[0]]
        if source.op_type not in ("Gemm", "Relu", "MatMul", "Add"):
            return str(node.input[0])
        node = source


def cut_at(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Return the part of a model that the tensor ``name`` needs, with it as the only output."""
    part = copied(model)
    del part.graph.output[:], part.graph.value_info[:]
    part.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    optimizer.remove_unused_nodes(part)
    Graph(part).replace_nodes(part.graph.node)
    return part


def run_model(model: onnx.ModelProto, pixels: Pixels, names: Sequence[str]) -> list[NDArray[np.float32]]:
    """Return tensors (n, …) of a model for uint8 (n, S, S, 3), whether it gives them or not."""
    probe = copied(model)
    del probe.graph.output[:]
    for name in names:
        probe.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = ort.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    answers = [session.run(list(names), {INPUT: to_nchw(block)}) for block in batches(pixels)]
    return [np.concatenate(each) for each in zip(*answers, strict=True)]


def cleaned(model: onnx.ModelProto) -> onnx.ModelProto:
    """Take out what describes how a model was made, and opsets it does not use."""
    used = {node.domain for node in model.graph.node}
    kept = [entry for entry in model.opset_import if entry.domain in used or entry.domain == ""]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    del model.graph.value_info[:]
    del model.metadata_props[:]
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    model.graph.name = model.producer_name = "xfeat"
    model.producer_version = ""
    return model
