"""A traced model in half precision. ONNX in, ONNX out."""

from __future__ import annotations

import onnx

from xfeat.export.quantization.onnx_graph import after_pooling, cleaned, copied


def to_float16(traced: onnx.ModelProto) -> onnx.ModelProto:
    """Convert the backbone to half precision; head, heatmap and ood score stay in float32, which their sums need."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    float32_nodes = [node.name for node in after_pooling(traced)]
    half = convert_float_to_float16(copied(traced), keep_io_types=True, node_block_list=float32_nodes)
    _remove_duplicate_casts(half.graph)
    model = OnnxModel(half)
    # Between two float32 nodes the conversion casts to half precision and back, where squares overflow.
    model.remove_cascaded_cast_nodes()
    model.topological_sort()
    return cleaned(model.model)


def _remove_duplicate_casts(graph: onnx.GraphProto) -> None:
    # The conversion casts a shared tensor once per reader, each time under the same name.
    nodes = {(node.name, tuple(node.output)): node for node in graph.node}
    unique = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes.values()]
    del graph.node[:]
    graph.node.extend(unique)
