"""A traced model in fewer bits: INT8 by calibration, or half precision. ONNX in, ONNX out; only temporary files."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnxscript import optimizer

from export.onnx_file import INPUT
from export.outputs import CORE_OUTPUTS
from export.parity import blocks, planes_of
from featurize.preprocess import Pixels

# Matrices of the head with fewer numbers stay as they are: they weigh nothing.
_SMALL = 16_384


def to_int8(traced: onnx.ModelProto, calibration: Pixels, float_layers: int = 0) -> onnx.ModelProto:
    """Quantise the backbone and store the head's weights in 8 bits.

    Activations are unsigned and weights signed with one scale a channel, the form that CPUs with VNNI compute fastest.
    What rounding shifts the mean of each feature by, measured on the calibration images, is added back: without that,
    a head reads the shift as a finding. Source: bias correction, Nagel et al. 2019 (arXiv:1906.04721), section 4.2.

    Args:
        traced: ``image`` float32 (N, 3, S, S) and all outputs, float32.
        calibration: uint8 (n, S, S, 3), images of the training.
        float_layers: so many convolutions from the input on stay in float32.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder, _quiet():
        given, prepared, done = (Path(folder) / name for name in ("given.onnx", "prepared.onnx", "done.onnx"))
        onnx.save(traced, given)
        quant_pre_process(given, prepared, skip_symbolic_shape=True)
        model = onnx.load(prepared)
        quantize_static(
            prepared,
            done,
            _Calibration(calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_kept_in_float(model, float_layers),
            extra_options={"CalibMovingAverage": True},
        )
        quantised = onnx.load(done)
    features = _features_name(model)
    shift = _features(traced, _features_name(traced), calibration) - _features(quantised, features, calibration)
    _add_to(quantised.graph, features, shift.mean(0).astype(np.float32))
    _store_head_in_8_bits(quantised.graph)
    return _cleaned(quantised)


def to_float16(traced: onnx.ModelProto) -> onnx.ModelProto:
    """Convert the backbone to half precision; head, heatmap and distance stay in float32, where sums need it."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    model = onnx.ModelProto()
    model.CopyFrom(traced)
    kept = _after_pooling(model)
    # Clip is on the list of operators for which old runtimes lack half precision.
    blocked = [name for name in DEFAULT_OP_BLOCK_LIST if name != "Clip"]
    converted = OnnxModel(
        convert_float_to_float16(model, keep_io_types=True, op_block_list=blocked, node_block_list=kept)
    )
    _drop_repeated_casts(converted.model.graph)
    _skip_detours(converted.model)
    converted.topological_sort()  # the conversion puts its casts at the end
    return _cleaned(converted.model)


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


class _Calibration:
    """Feeds images one by one, as onnxruntime's calibrators want them."""

    def __init__(self, pixels: Pixels) -> None:
        self._images = iter(range(len(pixels)))
        self._pixels = pixels

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        position = next(self._images, None)
        return None if position is None else {INPUT: planes_of(self._pixels[position : position + 1])}


def _after_pooling(model: onnx.ModelProto) -> list[str]:
    """Return the names of the nodes behind the last maps: pooling, head, heatmap and distance, kept in float32."""
    leads_to_convolution: set[str] = set()
    for node in reversed(model.graph.node):
        if node.op_type == "Conv" or leads_to_convolution & set(node.output):
            leads_to_convolution.update(node.input)
    reached: set[str] = set()
    names = []
    for node in model.graph.node:
        # squeeze-and-excite pools inside the backbone: convolutions follow
        starts = node.op_type in ("ReduceMean", "Reshape") and not leads_to_convolution & set(node.output)
        if starts or reached & set(node.input):
            reached.update(node.output)
            names.append(node.name)
    return names


def _kept_in_float(model: onnx.ModelProto, float_layers: int) -> list[str]:
    kept = _after_pooling(model)
    convolutions = 0
    for node in model.graph.node:
        if node.op_type == "Conv":
            convolutions += 1
        if convolutions == 0 or convolutions <= float_layers:
            kept.append(node.name)  # what normalises the input, and the layers asked for
    return kept


def _features_name(model: onnx.ModelProto) -> str:
    """Return the name of the features: what the first layer of the head multiplies."""
    producers = {name: node for node in model.graph.node for name in node.output}
    node = producers[CORE_OUTPUTS[1]]
    while True:
        source = producers[node.input[0]]
        if source.op_type not in ("Gemm", "Relu", "MatMul", "Add"):
            return str(node.input[0])
        node = source


def _features(model: onnx.ModelProto, name: str, pixels: Pixels) -> NDArray[np.float32]:
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = ort.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run([name], {INPUT: planes_of(block)})[0] for block in blocks(pixels)])


def _add_to(graph: onnx.GraphProto, name: str, shift: NDArray[np.float32]) -> None:
    """Insert an addition behind the tensor ``name``."""
    position = next(i for i, node in enumerate(graph.node) if name in node.output)
    corrected = f"{name}_corrected"
    for node in graph.node:
        node.input[:] = [corrected if each == name else each for each in node.input]
    graph.initializer.append(onnx.numpy_helper.from_array(shift, "feature_shift"))
    graph.node.insert(
        position + 1, onnx.helper.make_node("Add", [name, "feature_shift"], [corrected], name="correct_features")
    )


def _store_head_in_8_bits(graph: onnx.GraphProto) -> None:
    """Replace the head's matrices by 8-bit ones with a scale a row, which are widened where they are used."""
    matrices = [
        tensor
        for tensor in graph.initializer
        if len(tensor.dims) == 2
        and tensor.data_type == onnx.TensorProto.FLOAT
        and tensor.dims[0] * tensor.dims[1] >= _SMALL
    ]
    nodes = []
    for tensor in matrices:
        values = onnx.numpy_helper.to_array(tensor)
        scale = np.maximum(np.abs(values).max(1) / 127, np.finfo(np.float32).tiny).astype(np.float32)
        rounded = np.round(values / scale[:, None]).clip(-127, 127).astype(np.int8)
        parts = {
            f"{tensor.name}_int8": rounded,
            f"{tensor.name}_scale": scale,
            f"{tensor.name}_zero": np.zeros(len(scale), np.int8),
        }
        nodes.append(
            onnx.helper.make_node("DequantizeLinear", list(parts), [tensor.name], name=f"widen_{tensor.name}", axis=0)
        )
        graph.initializer.remove(tensor)
        graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in parts.items())
    everything = [*nodes, *graph.node]
    del graph.node[:]
    graph.node.extend(everything)


def _cleaned(model: onnx.ModelProto) -> onnx.ModelProto:
    used = {node.domain for node in model.graph.node}
    kept = [entry for entry in model.opset_import if entry.domain in used or entry.domain == ""]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    del model.graph.value_info[:]
    del model.metadata_props[:]
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    model.graph.name = model.producer_name = "xfeat"
    model.producer_version = ""
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    # onnxruntime's quantiser gives advice on the root logger that is not meant for our users.
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
