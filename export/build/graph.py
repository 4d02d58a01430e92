"""Reading and changing an ONNX graph, with lookups by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx
import onnx.parser
from numpy.typing import NDArray


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


def keep(entries: Any, wanted: Callable[[Any], bool]) -> None:
    """Remove the entries of a repeated field that are not wanted."""
    kept = [entry for entry in entries if wanted(entry)]
    del entries[:]
    entries.extend(kept)


def parse_graph(text: str) -> onnx.GraphProto:
    """Return the graph of a text in ONNX's syntax; each node is named after its output."""
    graph = onnx.parser.parse_graph(text)
    for node in graph.node:
        node.name = node.output[0]
    return graph


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """Return an attribute of a node."""
    found = (onnx.helper.get_attribute_value(each) for each in node.attribute if each.name == name)
    return next(found, default)


def make_node(operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    """Return a node that is named after its output."""
    return onnx.helper.make_node(operator, inputs, [output], name=output, **attributes)
