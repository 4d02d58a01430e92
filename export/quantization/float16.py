"""A traced model in half precision. ONNX in, ONNX out."""

from __future__ import annotations

from copy import deepcopy

import onnx

from xfeat.export.build.graph import Graph
from xfeat.export.quantization.subgraphs import after_pooling


def to_float16(traced: onnx.ModelProto) -> onnx.ModelProto:
    """Convert the backbone to half precision; head, heatmap and ood score stay in float32, which their sums need."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    float32_nodes = [node.name for node in after_pooling(traced)]
    half: onnx.ModelProto = convert_float_to_float16(
        deepcopy(traced), keep_io_types=True, node_block_list=float32_nodes
    )
    # The conversion casts a shared tensor once per reader, each time under the same name.
    Graph(half).replace_nodes(list({(node.name, tuple(node.output)): node for node in half.graph.node}.values()))
    # Between two float32 nodes it casts to half precision and back, where squares overflow.
    model = OnnxModel(half)
    model.remove_cascaded_cast_nodes()
    model.topological_sort()
    return half
