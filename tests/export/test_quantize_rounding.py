"""Making a model ready for 8 bits, rounding it, and what stays in float32; against float32 answers and numpy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from export.equalise import take_grey_levels
from export.float_layers import fewest
from export.graph import copied, features_name, run_model
from export.int8 import Ready, feature_error, make_ready, round_ready
from export.qdq import write_rounded
from export.rounding import Levels, best_levels, only, round_each
from export.rounding import _line as line
from featurize.specs import NORMALIZATIONS, PreprocessSpec

SPEC = PreprocessSpec(size=64)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    rng = np.random.default_rng(3)
    return rng.integers(0, 256, (8, 1, 1, 3), dtype=np.uint8) // 2 + rng.integers(
        0, 128, (8, 64, 64, 3), dtype=np.uint8
    )


@pytest.fixture(scope="module")
def ready(traced: onnx.ModelProto, pixels: np.ndarray) -> Ready:
    return make_ready(traced, pixels, SPEC)


def folded(ready: Ready) -> onnx.ModelProto:
    return copied(ready.backbone)


def test_a_model_made_ready_answers_as_before(traced: onnx.ModelProto, ready: Ready, pixels: np.ndarray) -> None:
    """But for the border, where half a grey level is missing."""
    expected = run_model(traced, pixels, [features_name(traced)])[0]
    found = run_model(ready.model, pixels, [ready.features_name])[0]
    assert ready.exact == ("levels",)
    assert np.abs(found - expected).max() < 0.25 * expected.std()


def test_grey_levels_are_taken_only_where_all_channels_are_normalised_alike(traced: onnx.ModelProto) -> None:
    mean, std = NORMALIZATIONS["imagenet"]
    model = copied(traced)
    assert not take_grey_levels(model, replace(SPEC, mean=mean, std=std))
    assert model == traced


def test_levels_cost_no_more_than_the_full_range() -> None:
    values = np.random.default_rng(0).standard_t(3, 5000).astype(np.float32)
    step = (values.max() - values.min()) / 255
    full = Levels(step=np.float32(step), zero=np.uint8(round(-values.min() / step)))
    best = best_levels(values, np.random.default_rng(0))
    assert np.square(best.round(values) - values).mean() <= np.square(full.round(values) - values).mean()
    assert best.round(np.zeros(1, np.float32)) == 0


def test_a_channel_is_put_right_by_least_squares() -> None:
    """Against numpy.polyfit."""
    rng = np.random.default_rng(0)
    wanted = rng.normal(size=(4, 2, 5, 5)).astype(np.float32)
    given = 1.1 * wanted + 0.3 + 0.1 * rng.normal(size=wanted.shape).astype(np.float32)
    slope, shift = line(given, wanted)
    for channel in range(2):
        expected = np.polyfit(given[:, channel].ravel(), wanted[:, channel].ravel(), 1)
        np.testing.assert_allclose([slope[channel], shift[channel]], expected, rtol=1e-4)


def test_rounding_in_order_costs_less_than_rounding_each_layer_alone(ready: Ready) -> None:
    in_order = feature_error(ready, round_ready(ready), len(ready.pixels))
    apart = feature_error(ready, round_each(ready.backbone, ready.followed, exact=ready.exact), len(ready.pixels))
    assert in_order < apart


def test_a_model_with_every_layer_in_float32_has_the_error_of_the_border_alone(ready: Ready) -> None:
    assert feature_error(ready, round_ready(ready, ready.layers), len(ready.pixels)) < 0.01


def test_onnxruntime_rounds_no_layer_of_its_own_accord(ready: Ready, tmp_path: Path) -> None:
    """Between layers in 8 bits it gives a float layer 8-bit weights with one scale, unless it is stopped."""
    model = folded(ready)
    write_rounded(model, round_ready(ready, [ready.layers[1]]))
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    operators = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert operators.count("QLinearConv") == len(ready.layers) - 1


def test_one_layer_alone_is_rounded(ready: Ready) -> None:
    each = round_each(ready.backbone, ready.followed, exact=ready.exact)
    alone = only(ready.backbone, each, ready.layers[3])
    assert list(alone.layers) == [ready.layers[3]]
    assert len(alone.tensors) == 2
    assert 0 < feature_error(ready, alone, 8) < feature_error(ready, each, 8)


@pytest.mark.parametrize("needed", [1, 2, 5, 23, 40])
def test_the_fewest_layers_are_found_in_eleven_attempts(needed: int) -> None:
    ranked = [f"layer {number}" for number in range(80)]
    tried: list[int] = []

    def attempt(layers: tuple[str, ...]) -> tuple[str, ...] | None:
        tried.append(len(layers))
        return layers if len(layers) >= needed else None

    assert fewest(ranked, attempt) == tuple(ranked[:needed])
    assert len(tried) <= 11


def test_a_model_that_is_half_in_float32_is_none_in_8_bits() -> None:
    assert fewest(["a", "b", "c", "d"], lambda layers: layers if len(layers) > 2 else None) is None
