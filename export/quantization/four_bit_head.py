"""The head's first matrix in 4 bits: in 8, it alone is a seventh of a small model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from xfeat.export.quantization.gptq import levels_in_order
from xfeat.export.quantization.onnx_graph import Graph, attribute, features_name

Array = NDArray[Any]

# Half a byte of as many numbers is 64 kB: with fewer, nothing is gained that shows in the size of a file.
_LARGE = 131_072
# A few hundred images say little of a thousand features. Seen on images that nothing was fitted to, 0.5 to 2 are alike,
# 0.01 is no better than rounding to the nearest level.
_DAMPING = 1.0
_LARGEST = 7


@dataclass(frozen=True, kw_only=True)
class HalfBytes:
    """A layer whose weights are levels times a scale a row times a scale a column.

    Attributes:
        levels: int8 (O, D), -7 to 7; D is even.
        rows: float32 (O, 1).
        columns: float32 (1, D).
        bias: float32 (O,), which takes what rounding shifts the outputs by.
    """

    levels: NDArray[np.int8]
    rows: NDArray[np.float32]
    columns: NDArray[np.float32]
    bias: NDArray[np.float32]


def first_matrix(model: onnx.ModelProto) -> tuple[str, str] | None:
    """Return the names of weight (O, D) and bias of the head's first layer, if it is worth storing in 4 bits."""
    graph = Graph(model)
    for node in graph.readers()[features_name(model)]:
        if node.op_type == "Gemm" and len(node.input) == 3 and attribute(node, "transB", 0):
            weight = graph.weight(node.input[1])
            if weight.size >= _LARGE and weight.shape[1] % 2 == 0:
                return node.input[1], node.input[2]
    return None


def half_bytes(weight: Array, bias: Array, features: Array) -> HalfBytes:
    """Round a layer to 4 bits so that what it makes of features changes by little.

    Columns are brought to one range first, because the head's BatchNorms are folded in and widen those of narrow
    features; then each row has its own step.

    Args:
        weight: float32 (O, D).
        bias: float32 (O,).
        features: float32 (n, D), what the layer reads, of images of the training.
    """
    columns = np.maximum(np.abs(weight).max(0), np.finfo(np.float32).tiny).astype(np.float64)
    even = weight / columns
    rows = np.maximum(np.abs(even).max(1) / _LARGEST, np.finfo(np.float32).tiny)
    mean = features.mean(0, dtype=np.float64)
    scaled = (features - mean) * columns
    moments = scaled.T @ scaled / len(scaled)
    levels = levels_in_order(even[None], rows[None], moments[None], _DAMPING, _LARGEST)[0]
    error = weight - levels * rows[:, None] * columns
    return HalfBytes(
        levels=levels,
        rows=rows[:, None].astype(np.float32),
        columns=columns[None].astype(np.float32),
        bias=(bias + error @ mean).astype(np.float32),
    )
