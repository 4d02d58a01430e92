"""The decision as part of the graph: the predicted class, and the threshold as an input that may be left out."""

from __future__ import annotations

import numpy as np
import onnx

from xfeat.export.build.graph import Graph, keep, make_node
from xfeat.export.model.interface import DECISION, PROBABILITIES, THRESHOLD, float32_threshold
from xfeat.export.model.metadata import ModelMetadata

_PREFIX = "decision_"


def add_decision(proto: onnx.ModelProto, metadata: ModelMetadata) -> None:
    """Add the output ``decision``: int64 (N,), indices of the classes that :meth:`ModelMetadata.decide` returns.

    With a positive class there is also an input ``threshold``, a float32 scalar with the model's own as its default: an
    initializer that is also an input. Where a probability is not a number, the decision is -1.

    Args:
        proto: with an output ``probabilities`` float32 (N, C); changed in place.
        metadata: has classes, positive class and threshold.
    """
    graph, names = Graph(proto), metadata.class_names
    nodes: list[onnx.NodeProto] = []

    def node(operator: str, *inputs: str, **attributes: object) -> str:
        name = f"{_PREFIX}{len(nodes)}"
        nodes.append(make_node(operator, inputs, name, **attributes))
        return name

    def constant(name: str, values: object, kind: type[np.generic]) -> str:
        graph.set_weight(_PREFIX + name, np.array(values, kind))
        return _PREFIX + name

    if metadata.positive is None or metadata.threshold is None:
        chosen = node("ArgMax", PROBABILITIES, axis=1, keepdims=0)
    else:
        positive = names.index(metadata.positive)
        # Probabilities are at most 1, so that of the positive class is below the others'; adding 0 changes none.
        hidden = constant("hidden", [[-2.0 * (place == positive) for place in range(len(names))]], np.float32)
        other = node("ArgMax", node("Add", PROBABILITIES, hidden), axis=1, keepdims=0)
        index = constant("positive", positive, np.int64)
        score = node("Gather", PROBABILITIES, index, axis=1)
        graph.set_weight(THRESHOLD, np.array(float32_threshold(metadata.threshold)))
        proto.graph.input.append(onnx.helper.make_tensor_value_info(THRESHOLD, onnx.TensorProto.FLOAT, []))
        chosen = node("Where", node("GreaterOrEqual", score, THRESHOLD), index, other)
    total = node("ReduceSum", PROBABILITIES, constant("axes", [1], np.int64), keepdims=0)
    is_number = node("GreaterOrEqual", total, constant("zero", 0.0, np.float32))
    nodes.append(make_node("Where", [is_number, chosen, constant("none", -1, np.int64)], DECISION))
    proto.graph.node.extend(nodes)
    proto.graph.output.append(onnx.helper.make_tensor_value_info(DECISION, onnx.TensorProto.INT64, ["N"]))


def remove_decision(proto: onnx.ModelProto) -> None:
    """Remove what :func:`add_decision` added, if it is there."""
    graph = proto.graph
    keep(graph.output, lambda value: value.name != DECISION)
    keep(graph.input, lambda value: value.name != THRESHOLD)
    Graph(proto).replace_nodes([node for node in graph.node if not node.name.startswith((_PREFIX, DECISION))])
