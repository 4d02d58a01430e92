"""A traced model in half precision. ONNX in, ONNX out."""

from __future__ import annotations

import onnx
from onnxscript import optimizer

from xfeat.export.quantization.onnx_graph import after_pooling, cleaned, copied


def to_float16(traced: onnx.ModelProto) -> onnx.ModelProto:
    """Convert the backbone to half precision; head, heatmap and distance stay in float32, where sums need it."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    model = copied(traced)
    kept = [node.name for node in after_pooling(model)]
    # Clip is on the list of operators for which old runtimes lack half precision.
    blocked = [name for name in DEFAULT_OP_BLOCK_LIST if name != "Clip"]
    converted = OnnxModel(
        convert_float_to_float16(model, keep_io_types=True, op_block_list=blocked, node_block_list=kept)
    )
    _drop_repeated_casts(converted.model.graph)
    _skip_detours(converted.model)
    converted.topological_sort()  # the conversion puts its casts at the end
    return cleaned(converted.model)


def _drop_repeated_casts(graph: onnx.GraphProto) -> None:
    # The conversion casts a shared tensor once for each of its readers, every time under the same name.
    seen: set[str] = set()
    kept = []
    for node in graph.node:
        if node.op_type == "Cast" and node.output[0] in seen:
            continue
        seen.update(node.output)
        kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


def _skip_detours(model: onnx.ModelProto) -> None:
    # Between two operators kept in float32 the conversion goes through half precision, where squares overflow.
    casts = {node.output[0]: node for node in model.graph.node if node.op_type == "Cast"}
    for node in casts.values():
        before = casts.get(node.input[0])
        if before is not None and node.attribute[0].i == onnx.TensorProto.FLOAT:
            node.input[0] = before.input[0]
    optimizer.remove_unused_nodes(model)
