"""The core model for older runtimes: opset 13 instead of 18, with the same outputs."""

from __future__ import annotations

import onnx

from xfeat.export.build.graph import Graph, attribute, keep, make_node
from xfeat.featurize.engines.conversion import OPSET
from xfeat.featurize.errors import SpecError


def lower_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Rewrite a core model of opset 18 for an older one.

    Between 13 and 18, only ReduceMean (axes as an attribute before) and Reshape (``allowzero``) changed among the
    operators of this project's networks. A mean over height and width becomes GlobalAveragePool, which every runtime
    supports. Other encoders can have newer operators, or operators with newer settings: ONNX's own schemas show them.

    Args:
        model: a core model, changed in place.
        opset: 13.

    Raises:
        SpecError: if the model has an operator that cannot be expressed.
    """
    graph = Graph(model)
    nodes: list[onnx.NodeProto] = []
    for node in graph.nodes:
        nodes += _mean(graph, node) if node.op_type == "ReduceMean" else [node]
        if node.op_type == "Reshape":
            keep(node.attribute, lambda each: each.name != "allowzero")
    graph.replace_nodes(nodes)
    model.opset_import[0].version = opset
    model.ir_version = 7  # the version of runtimes for opset 13
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        found, fix = " ".join(str(error).split())[:200], f"--opset {OPSET}"
        raise SpecError(f"the core model cannot be expressed in opset {opset}", found=found, fix=fix) from error
    return model


def _mean(graph: Graph, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    if len(node.input) < 2 or not graph.is_weight(node.input[1]):
        raise SpecError("a mean that opset 13 cannot express", expected="over fixed axes", found=node.name)
    axes, keepdims = graph.weight(node.input[1]).ravel().tolist(), attribute(node, "keepdims", 1)
    result = node.output[0]
    if axes not in ([2, 3], [-2, -1]):
        return [make_node("ReduceMean", [node.input[0]], result, axes=axes, keepdims=keepdims)]
    if keepdims:
        return [make_node("GlobalAveragePool", [node.input[0]], result)]
    pooled = make_node("GlobalAveragePool", [node.input[0]], f"{result}_pooled")
    return [pooled, make_node("Flatten", [pooled.name], result, axis=1)]
