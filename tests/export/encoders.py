"""Small encoders as ONNX files, in the many forms that exporters write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser

SIDE, DIM, GRID = 32, 6, 4

_MAP = """
    squares = Conv <strides = [8, 8], kernel_shape = [8, 8]> (pixels, weight, bias)
    map = Relu (squares)
"""
_TOKENS = """
    flat = Reshape (map, flat_shape)
    mean = GlobalAveragePool (map)
    class_token = Reshape (mean, flat_shape)
    {joined}
    tokens = Transpose <perm = [0, 2, 1]> (all)
"""
_BODIES = {
    "map": _MAP,
    "vector": _MAP + "pooled = GlobalAveragePool (map)\nvector = Flatten <axis = 1> (pooled)",
    "tokens": _MAP + _TOKENS.format(joined="all = Identity (flat)"),
    "class token and tokens": _MAP + _TOKENS.format(joined="all = Concat <axis = 2> (class_token, flat)"),
    "tokens without a grid": _MAP + _TOKENS.format(joined="all = Concat <axis = 2> (flat, flat, flat)"),
}
_SHAPES = {
    "map": (DIM, GRID, GRID),
    "vector": (DIM,),
    "tokens": (GRID * GRID, DIM),
    "class token and tokens": (1 + GRID * GRID, DIM),
    "tokens without a grid": (3 * GRID * GRID, DIM),
}
OUTPUTS = {kind: kind if kind in ("map", "vector") else "tokens" for kind in _BODIES}


def build_encoder(
    kind: str = "map", *, opset: int = 18, batch: int | None = None, ir_version: int = 8
) -> onnx.ModelProto:
    """Return an encoder of normalised float32 (N, 3, 32, 32): its map is 6 × 4 × 4.

    Args:
        kind: a key of OUTPUTS.
        opset: of its operators.
        batch: N, if it is fixed.
        ir_version: before 4, weights stand among the inputs as well.
    """
    image, output = (", ".join(map(str, (batch or "N", *shape))) for shape in ((3, SIDE, SIDE), _SHAPES[kind]))
    model = onnx.parser.parse_model(
        f'<ir_version: {ir_version}, opset_import: ["": {opset}]>\n'
        f"encoder (float[{image}] pixels) => (float[{output}] {OUTPUTS[kind]}) {{ {_BODIES[kind]} }}"
    )
    rng = np.random.default_rng(4)
    weights = {
        "weight": rng.standard_normal((DIM, 3, 8, 8)).astype(np.float32) / 8,
        "bias": rng.standard_normal(DIM).astype(np.float32),
        "flat_shape": np.array([0, DIM, -1], np.int64),
    }
    read = {name for node in model.graph.node for name in node.input}
    for name, array in weights.items():
        if name in read:
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
            if ir_version < 4:
                kind_of = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
                model.graph.input.append(onnx.helper.make_tensor_value_info(name, kind_of, array.shape))
    return model


def write_encoder(path: Path, model: onnx.ModelProto | None = None) -> Path:
    """Write an encoder, by default one that returns a map."""
    onnx.save(model or build_encoder(), path)
    return path
