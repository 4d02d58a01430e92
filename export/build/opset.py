"""The core model for older runtimes: opset 13 instead of 18, with the same outputs."""

from __future__ import annotations

import numpy as np
import onnx

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
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        nodes += _as_pool(node, constants, producers) if node.op_type == "ReduceMean" else [node]
        if node.op_type == "Reshape":
            others = [attribute for attribute in node.attribute if attribute.name != "allowzero"]
            del node.attribute[:]
            node.attribute.extend(others)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.opset_import[0].version = opset
    model.ir_version = 7  # the version of runtimes for opset 13
    onnx.checker.check_model(model, full_check=True)
    return model


def _as_pool(
    node: onnx.NodeProto, constants: dict[str, onnx.TensorProto], producers: dict[str, onnx.NodeProto]
) -> list[onnx.NodeProto]:
    axes = _values(node.input[1], constants, producers)
    if sorted(axis % 4 for axis in axes) != [2, 3]:
        raise SpecError("a mean that opset 13 cannot express", expected="over height and width", found=str(axes))
    keeps = next((attribute.i for attribute in node.attribute if attribute.name == "keepdims"), 1)
    name, result = node.name, node.output[0]
    if keeps:
        return [onnx.helper.make_node("GlobalAveragePool", [node.input[0]], [result], name=name)]
    return [
        onnx.helper.make_node("GlobalAveragePool", [node.input[0]], [f"{result}_pooled"], name=name),
        onnx.helper.make_node("Flatten", [f"{result}_pooled"], [result], name=f"{name}_flat", axis=1),
    ]


def _values(name: str, constants: dict[str, onnx.TensorProto], producers: dict[str, onnx.NodeProto]) -> list[int]:
    if name in constants:
        return [int(value) for value in np.ravel(onnx.numpy_helper.to_array(constants[name]))]
    value = onnx.helper.get_attribute_value(producers[name].attribute[0])
    return [int(each) for each in np.ravel(onnx.numpy_helper.to_array(value))]
