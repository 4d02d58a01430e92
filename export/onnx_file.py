"""Writing the model files: tracing, naming, metadata."""

from __future__ import annotations

from dataclasses import replace

import onnx
import torch

from export.fused import OUTPUTS, FusedModel
from export.metadata import ModelMetadata
from featurize.engines.conversion import to_onnx

_EXAMPLES = 2  # one would be folded into the graph as a constant


def trace(model: FusedModel, side: int) -> onnx.ModelProto:
    """Convert a fused model to ONNX in its core form: ``image`` float32 (N, 3, side, side), RGB in 0..255."""
    example = torch.zeros((_EXAMPLES, 3, side, side))
    proto = to_onnx(model, example, input_name="image", output_names=OUTPUTS, dynamic={0: "N"})
    proto.graph.name = "xfeat"
    proto.producer_name, proto.producer_version = "xfeat", ""
    return proto


def finish(core: onnx.ModelProto, metadata: ModelMetadata, variant: str) -> onnx.ModelProto:
    """Make one of the two forms of a traced model, with its metadata inside.

    Args:
        core: what :func:`trace` returned; it is left as it is.
        metadata: what the file says of itself; its variant is set here.
        variant: ``core``, or ``full``, which takes uint8 (N, S, S, 3) instead.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(core)
    if variant == "full":
        _take_pixels(proto.graph)
    onnx.helper.set_model_props(proto, replace(metadata, variant=variant).to_props())
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _take_pixels(graph: onnx.GraphProto) -> None:
    """Put the conversion from uint8 pixels, channels last, before everything else."""
    image = graph.input[0]
    batch, _, height, width = image.type.tensor_type.shape.dim
    shape = [batch.dim_param, height.dim_value, width.dim_value, 3]
    for node in graph.node:
        node.input[:] = ["planes" if name == image.name else name for name in node.input]
    graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info(image.name, onnx.TensorProto.UINT8, shape))
    before = [
        onnx.helper.make_node("Transpose", [image.name], ["planes_uint8"], name="planes_first", perm=[0, 3, 1, 2]),
        onnx.helper.make_node("Cast", ["planes_uint8"], ["planes"], name="to_float", to=onnx.TensorProto.FLOAT),
    ]
    after = list(graph.node)
    del graph.node[:]
    graph.node.extend([*before, *after])
