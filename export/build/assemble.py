"""Assembles the ONNX models: tracing, the full and the core variant, metadata."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx
import torch
from onnxscript import optimizer

from xfeat.export.build.fused_model import FusedModel
from xfeat.export.build.resize_graph import PLANES, resize_graph
from xfeat.export.model.interface import CORE_OUTPUTS, INPUT
from xfeat.export.model.metadata import ModelMetadata
from xfeat.featurize.engines.conversion import to_onnx

_EXAMPLES = 2  # a batch size of one would become a constant of the graph


def trace(model: FusedModel, side: int) -> onnx.ModelProto:
    """Convert a fused model to ONNX: ``image`` float32 (N, 3, side, side), RGB in 0..255, and all its outputs."""
    example = torch.zeros((_EXAMPLES, 3, side, side))
    proto = to_onnx(model, example, input_name=INPUT, output_names=model.output_names, dynamic={0: "N"})
    proto.graph.name = "xfeat"
    proto.producer_name, proto.producer_version = "xfeat", ""
    return proto


def finish(traced: onnx.ModelProto, metadata: ModelMetadata, variant: str) -> onnx.ModelProto:
    """Return one variant of a traced model, with its metadata.

    Args:
        traced: from :func:`trace`; it is not changed.
        metadata: of the model; its variant is set here.
        variant: ``full`` takes uint8 (N, H, W, 3) of any size and has every output; ``core`` takes the traced input and
            has only probabilities and logits.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(traced)
    if variant == "full":
        _prepend_resize(proto.graph)
    else:
        _keep_outputs(proto, CORE_OUTPUTS)
    onnx.helper.set_model_props(proto, replace(metadata, variant=variant).to_props())
    onnx.checker.check_model(proto, full_check=True)
    return proto


def detach_resize(full: onnx.ModelProto, side: int) -> onnx.ModelProto:
    """Return a full model without its resize, as it was traced: ``image`` float32 (N, 3, side, side), all outputs."""
    proto = onnx.ModelProto()
    proto.CopyFrom(full)
    graph = proto.graph
    before = {name for node in resize_graph(side).node for name in node.output} - {PLANES}
    weights = {tensor.name for tensor in resize_graph(side).initializer}
    nodes = [node for node in graph.node if not (before | {PLANES}) & set(node.output)]
    for node in nodes:
        node.input[:] = [INPUT if name == PLANES else name for name in node.input]
    others = [tensor for tensor in graph.initializer if tensor.name not in weights]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(others)
    shape: list[str | int | None] = ["N", 3, side, side]
    graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info(INPUT, onnx.TensorProto.FLOAT, shape))
    return proto


def _keep_outputs(proto: onnx.ModelProto, names: Sequence[str]) -> None:
    outputs = [output for output in proto.graph.output if output.name in names]
    del proto.graph.output[:]
    proto.graph.output.extend(outputs)
    optimizer.remove_unused_nodes(proto)


def _prepend_resize(graph: onnx.GraphProto) -> None:
    """Prepend the resize of uint8 images with channels last."""
    before = resize_graph(graph.input[0].type.tensor_type.shape.dim[2].dim_value)
    for node in graph.node:
        node.input[:] = [PLANES if name == INPUT else name for name in node.input]
    graph.input[0].CopyFrom(before.input[0])
    graph.initializer.extend(before.initializer)
    nodes = [*before.node, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
