"""Small encoders written node by node, of every kind that people export, and of those that cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, FLOAT16, INT64, UINT8 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.UINT8
SIDE, DIM = 32, 6
IMAGE = ("N", 3, SIDE, SIDE)


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


def constant(name: str, value: Any, dtype: Any = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, dtype), name)


def _kernels() -> list[onnx.TensorProto]:
    random = np.random.default_rng(0)
    kernels = random.standard_normal((DIM, 3, 8, 8)) / 14
    return [constant("kernels", kernels), constant("offsets", random.standard_normal(DIM))]


MAP = [node("Conv", "image kernels offsets", "conv", strides=[8, 8]), node("Relu", "conv", "map")]
VECTOR = [*MAP, node("GlobalAveragePool", "map", "pooled"), node("Flatten", "pooled", "vector")]
TOKENS = [
    *MAP,
    node("Reshape", "map to_rows", "rows"),
    node("Transpose", "rows", "tokens", perm=[0, 2, 1]),
]
ROWS = constant("to_rows", [0, DIM, -1], np.int64)
# The first token is the largest of the others.
CLASS_TOKEN = [
    *TOKENS,
    node("ReduceMax", "tokens", "first", axes=[1], keepdims=1),
    node("Concat", "first tokens", "all", axis=1),
]
REGISTERS = [*CLASS_TOKEN[:-1], node("Concat", "first first first tokens", "all", axis=1)]


def encoder(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    *outputs: str,
    image: Sequence[Any] = IMAGE,
    kind: int = FLOAT,
    more_inputs: Sequence[tuple[str, int, Sequence[Any]]] = (),
    constants: Sequence[onnx.TensorProto] = (),
    output_kind: int = FLOAT,
    opset: int = 13,
    change: Callable[[onnx.ModelProto], object] = lambda model: None,
) -> Path:
    """Write an encoder; the shapes of its outputs are not declared, as in many files."""
    inputs = [("image", kind, image), *more_inputs]
    graph = helper.make_graph(
        list(nodes),
        "encoder",
        [helper.make_tensor_value_info(*one) for one in inputs],
        [helper.make_tensor_value_info(name, output_kind, None) for name in outputs],
        [*_kernels(), ROWS, *constants],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.example", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def external(path: Path, nodes: Sequence[onnx.NodeProto], output: str, **options: Any) -> Path:
    """Write an encoder whose weights are in a file beside it."""
    encoder(path, nodes, output, **options)
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="encoder.data", size_threshold=1000)
    return path


def pooled(output: np.ndarray, pooling: str, prefix: int = 0) -> np.ndarray:
    """Return what features are, by definition."""
    if output.ndim == 2:
        return output
    if output.ndim == 4:
        return output.reshape(*output.shape[:2], -1).mean(2)
    return output[:, 0] if pooling == "cls" else output[:, prefix:].mean(1)
