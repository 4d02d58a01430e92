"""Assembles the ONNX models: tracing, the full and the core variant, metadata."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import onnx
import torch
from onnxscript import optimizer

from xfeat.export.build.decision import add_decision, remove_decision
from xfeat.export.build.fused_model import FusedModel
from xfeat.export.build.graph import Graph, keep
from xfeat.export.build.opset import lower_opset
from xfeat.export.build.resize_graph import PLANES, RESIZE_PREFIXES, resize_graph
from xfeat.export.model.interface import CORE_OUTPUTS, INPUT
from xfeat.export.model.metadata import ModelMetadata
from xfeat.featurize.engines.conversion import OPSET, to_onnx, write_model
from xfeat.featurize.specs import PreprocessSpec

EXAMPLES = 2  # a batch size of one would become a constant of the graph


def trace(model: FusedModel, side: int) -> onnx.ModelProto:
    """Convert a fused model to ONNX: ``image`` float32 (N, 3, side, side), RGB in 0..255, and all its outputs."""
    example = torch.zeros((EXAMPLES, 3, side, side))
    return to_onnx(model, example, input_name=INPUT, output_names=model.output_names, dynamic={0: "N"})


def write_variants(
    traced: onnx.ModelProto, metadata: ModelMetadata, files: Mapping[str, Path], core_opset: int = OPSET
) -> None:
    """Write a traced model with its metadata.

    Args:
        traced: from :func:`trace`; it is not changed.
        metadata: of the model; its variant is set here.
        files: variant to path. ``full`` takes uint8 (N, H, W, 3) of any size and has every output and the decision;
            ``core`` takes the traced input and has only probabilities and logits.
        core_opset: of the core model.

    Raises:
        OutputError: if a file cannot be written.
    """
    for variant, file in files.items():
        proto = deepcopy(traced)
        if variant == "full":
            _prepend_resize(proto, metadata.feature_spec.preprocess)
            add_decision(proto, metadata)
        else:
            keep(proto.graph.output, lambda output: output.name in CORE_OUTPUTS)
            optimizer.remove_unused_nodes(proto)
        used = {"", *(node.domain for node in proto.graph.node)}
        for entry in [entry for entry in proto.opset_import if entry.domain not in used]:
            proto.opset_import.remove(entry)
        del proto.graph.value_info[:]
        proto.graph.name = proto.producer_name = "xfeat"
        proto.producer_version = ""
        onnx.helper.set_model_props(proto, replace(metadata, variant=variant).to_props())
        if variant == "core" and core_opset != OPSET:
            lower_opset(proto, core_opset)
        onnx.checker.check_model(proto, full_check=True)
        write_model(proto, file)


def detach_resize(full: onnx.ModelProto, spec: PreprocessSpec) -> onnx.ModelProto:
    """Return a full model without resize and decision, as it was traced: ``image`` float32 (N, 3, side, side)."""
    proto = deepcopy(full)
    remove_decision(proto)
    nodes = [node for node in proto.graph.node if not node.name.startswith(RESIZE_PREFIXES)]
    for node in nodes:
        node.input[:] = [INPUT if name == PLANES else name for name in node.input]
    Graph(proto).replace_nodes(nodes)
    shape: list[str | int | None] = ["N", 3, spec.size, spec.size]
    proto.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info(INPUT, onnx.TensorProto.FLOAT, shape))
    return proto


def _prepend_resize(proto: onnx.ModelProto, spec: PreprocessSpec) -> None:
    """Prepend the box and the resize of uint8 images with channels last."""
    graph = proto.graph
    resize = resize_graph(spec)
    for node in graph.node:
        node.input[:] = [PLANES if name == INPUT else name for name in node.input]
    graph.input[0].CopyFrom(resize.input[0])
    graph.initializer.extend(resize.initializer)
    Graph(proto).replace_nodes([*resize.node, *graph.node])
