"""The core model for older runtimes: opset 13 instead of 18, with the same outputs."""

from __future__ import annotations

import onnx

from xfeat.export.build.graph import Graph, attribute, make_node
from xfeat.featurize.errors import SpecError


def lower_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Rewrite a core model of opset 18 for an older one.

    Between 13 and 18, only ReduceMean (axes as an attribute before) and Reshape (``allowzero``) changed among the
    operators of a core model. A mean over height and width becomes GlobalAveragePool, which every runtime supports.

    Args:
        model: a core model, changed in place.
        opset: 13.

    Raises:
        SpecError: if the model has an operator that cannot be expressed.
    """
    graph = Graph(model)
    nodes: list[onnx.NodeProto] = []
    for node in graph.nodes:
        nodes += _as_pool(graph, node) if node.op_type == "ReduceMean" else [node]
        if node.op_type == "Reshape":
            others = [each for each in node.attribute if each.name != "allowzero"]
            del node.attribute[:]
            node.attribute.extend(others)
    graph.replace_nodes(nodes)
    model.opset_import[0].version = opset
    model.ir_version = 7  # the version of runtimes for opset 13
    return model


def _as_pool(graph: Graph, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    axes = graph.weight(node.input[1]).ravel().tolist() if graph.is_weight(node.input[1]) else node.input[1]
    if axes not in ([2, 3], [-2, -1]):
        raise SpecError("a mean that opset 13 cannot express", expected="over height and width", found=str(axes))
    result = node.output[0]
    if attribute(node, "keepdims", 1):
        return [make_node("GlobalAveragePool", [node.input[0]], result)]
    pooled = make_node("GlobalAveragePool", [node.input[0]], f"{result}_pooled")
    return [pooled, make_node("Flatten", [pooled.name], result, axis=1)]
