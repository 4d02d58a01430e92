"""The head's first matrix in 4 bits: what the file holds, what a runtime makes of it, what it costs; against numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from xfeat.export.quantization.four_bit_head import first_matrix, half_bytes
from xfeat.export.quantization.qdq import store_matrices_in_8_bits, store_matrix_in_4_bits

OUTPUTS, WIDTH = 48, 96


@pytest.fixture
def weight() -> np.ndarray:
    """Columns of widths a thousandfold apart, as BatchNorms of narrow features leave them."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(OUTPUTS, WIDTH)) * np.geomspace(0.03, 30, WIDTH)).astype(np.float32)


@pytest.fixture
def bias() -> np.ndarray:
    return np.random.default_rng(1).normal(size=OUTPUTS).astype(np.float32)


def features(count: int, seed: int) -> np.ndarray:
    """Fewer directions than columns, as narrow as the weights are wide, and far from 0."""
    mix = np.random.default_rng(2).normal(size=(10, WIDTH))
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(count, 10)) @ mix + 0.3 * rng.normal(size=(count, WIDTH)) + 5
    return (values / np.geomspace(0.03, 30, WIDTH)).astype(np.float32)


def layer(weight: np.ndarray, bias: np.ndarray) -> onnx.ModelProto:
    """A layer, and a product that reads the same weight, as a heatmap does."""
    tensor, number = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    outputs, width = weight.shape
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Gemm", ["x", "w", "b"], ["logits"], transB=1),
            onnx.helper.make_node("MatMul", ["g", "w"], ["gradient"]),
        ],
        "g",
        [tensor("x", number, ["n", width]), tensor("g", number, ["n", outputs])],
        [tensor("logits", number, ["n", outputs]), tensor("gradient", number, ["n", width])],
        [onnx.numpy_helper.from_array(weight, "w"), onnx.numpy_helper.from_array(bias, "b")],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)


def test_a_runtime_reads_the_numbers_that_were_stored(tmp_path: Path, weight: np.ndarray, bias: np.ndarray) -> None:
    """All pairs of levels are among them; onnxruntime unpacks them once, when it loads the file."""
    matrix = half_bytes(weight, bias, features(20, 3))
    levels = np.arange(-7, 8)
    matrix.levels[:15, : WIDTH // 2], matrix.levels[:15, WIDTH // 2 :] = levels[:, None], np.resize(levels, WIDTH // 2)
    model = layer(weight, bias)
    store_matrix_in_4_bits(model, "w", matrix)
    store_matrices_in_8_bits(model)
    onnx.checker.check_model(model, full_check=True)
    (stored,) = [each for each in model.graph.initializer if each.data_type == onnx.TensorProto.INT8]
    assert len(stored.raw_data) == weight.size // 2
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given = {"x": np.eye(WIDTH, dtype=np.float32), "g": np.eye(OUTPUTS, dtype=np.float32)}
    logits, gradient = session.run(["logits", "gradient"], given)
    expected = matrix.levels * matrix.rows * matrix.columns
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)
    np.testing.assert_allclose(logits - matrix.bias, expected.T, rtol=1e-3, atol=1e-5)
    assert [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node] == ["MatMul", "Gemm"]


def test_outputs_change_by_less_than_with_the_nearest_levels(weight: np.ndarray, bias: np.ndarray) -> None:
    """On features that nothing was fitted to; nearest levels by numpy, with the same scales and the bias put right."""
    known, new = features(40, 3), features(200, 4)
    matrix = half_bytes(weight, bias, known)
    scales = matrix.rows * matrix.columns
    nearest = np.rint(weight / scales) * scales
    nearest_bias = bias + known.mean(0) @ (weight - nearest).T
    wanted = new @ weight.T + bias
    found = new @ (matrix.levels * scales).T + matrix.bias
    assert np.square(found - wanted).mean() < 0.5 * np.square(new @ nearest.T + nearest_bias - wanted).mean()
    assert np.square(found - wanted).mean() < 0.01 * wanted.var(0).mean()


def test_outputs_keep_their_mean(weight: np.ndarray, bias: np.ndarray) -> None:
    known = features(40, 3)
    matrix = half_bytes(weight, bias, known)
    found = known @ (matrix.levels * matrix.rows * matrix.columns).T + matrix.bias
    wanted = known @ weight.T + bias
    np.testing.assert_allclose(found.mean(0), wanted.mean(0), atol=1e-4 * wanted.std())


def test_the_width_of_a_feature_does_not_matter(weight: np.ndarray, bias: np.ndarray) -> None:
    factor = np.exp2(np.random.default_rng(5).integers(-9, 9, WIDTH)).astype(np.float32)
    one, other = (half_bytes(weight * by, bias, features(40, 3) / by) for by in (np.ones_like(factor), factor))
    np.testing.assert_array_equal(one.levels, other.levels)
    np.testing.assert_array_equal(one.columns * factor, other.columns)


def test_one_image_leaves_the_nearest_levels(weight: np.ndarray, bias: np.ndarray) -> None:
    """It says nothing of how features go along with each other. A column of zeros and a row of zeros stay so."""
    weight[3], weight[:, 5] = 0, 0
    matrix = half_bytes(weight, bias, features(1, 3))
    scales = matrix.rows * matrix.columns
    assert (np.abs(weight - matrix.levels * scales) <= 0.5001 * scales).all()
    assert not matrix.levels[3].any()
    assert not matrix.levels[:, 5].any()


@pytest.mark.parametrize(
    ("shape", "found"), [((512, 1280), ("w", "b")), ((512, 1281), None), ((2, 1280), None), ((102, 1280), None)]
)
def test_a_matrix_that_weighs_little_is_none_for_4_bits(shape: tuple[int, int], found: tuple[str, str] | None) -> None:
    """Nor one of an odd number of columns."""
    model = layer(np.ones(shape, np.float32), np.ones(shape[0], np.float32))
    model.graph.input[0].name = "maps"
    model.graph.node.insert(0, onnx.helper.make_node("Sigmoid", ["maps"], ["x"]))
    assert first_matrix(model) == found
