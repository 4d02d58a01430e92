"""Making a model ready for 8 bits, rounding it, and what stays in float32; against float32 answers and numpy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch.ao.quantization import MinMaxObserver

from xfeat.export.quantization.equalization import fold_normalisation
from xfeat.export.quantization.gptq import rounded_in_order
from xfeat.export.quantization.int8 import Ready, feature_error, round_ready, round_repeatedly, write_int8
from xfeat.export.quantization.mixed_precision import fewest, first_block
from xfeat.export.quantization.onnx_graph import Graph, attribute, copied, features_name, run_model
from xfeat.export.quantization.qdq import write_rounded
from xfeat.export.quantization.rounding import Rounded, covering, only, round_each, row_scale
from xfeat.export.quantization.rounding import _line as line
from xfeat.featurize.specs import NORMALIZATIONS, PreprocessSpec

SPEC = PreprocessSpec(size=64)


@pytest.fixture(scope="module")
def rounded_apart(ready: Ready) -> Rounded:
    return round_each(ready.backbone, ready.pixels[ready.followed])


def folded(ready: Ready) -> onnx.ModelProto:
    return copied(ready.backbone)


def test_a_model_made_ready_answers_as_before(traced: onnx.ModelProto, ready: Ready, pixels: np.ndarray) -> None:
    expected = run_model(traced, pixels, [features_name(traced)])[0]
    found = run_model(ready.model, pixels, [ready.features_name])[0]
    assert np.abs(found - expected).max() < 1e-3 * expected.std()


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_the_first_layer_normalises(traced: onnx.ModelProto, pixels: np.ndarray, name: str) -> None:
    """Against torch, which divides by the deviation before it convolves."""
    mean, std = NORMALIZATIONS[name]
    model = copied(traced)
    first = Graph(model).convolutions[0]
    weight = torch.tensor(Graph(model).weight(first.input[1]), dtype=torch.float64)
    fold_normalisation(model, replace(SPEC, mean=mean, std=std))
    assert [node.op_type for node in Graph(model).nodes[:2]] == ["Sub", "Conv"]
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).double() / 255
    centred = (images - torch.tensor(mean).view(1, -1, 1, 1)) / torch.tensor(std).view(1, -1, 1, 1)
    padded = torch.nn.functional.pad(centred, [attribute(first, "pads", None)[side] for side in (1, 3, 0, 2)])
    expected = torch.nn.functional.conv2d(padded, weight, stride=2)
    if len(first.input) > 2:
        expected += torch.tensor(Graph(model).weight(first.input[2])).view(1, -1, 1, 1)
    np.testing.assert_allclose(run_model(model, pixels, [first.output[0]])[0], expected, atol=1e-4)


def test_channels_that_no_bound_cuts_have_one_range(ready: Ready, pixels: np.ndarray) -> None:
    """Where a sum follows, it is the widest of all that are added up that counts."""
    graph = Graph(ready.backbone)
    names = [node.output[0] for node in graph.convolutions if "project" in node.name]
    alone = [name for name in names if not any(node.op_type == "Add" for node in graph.readers()[name])]
    assert len(names) > len(alone) > 1
    for values in run_model(ready.model, pixels, alone):
        largest = np.abs(values).max((0, 2, 3))
        np.testing.assert_allclose(largest, largest.max(), rtol=1e-2)


@pytest.mark.parametrize(("images", "side", "followed"), [(300, 224, 32), (40, 224, 32), (9, 224, 9), (300, 448, 8)])
@pytest.mark.parametrize("start", [1 / 6, 0.5, 5 / 6])
def test_images_that_are_followed_are_spread_evenly(
    images: int, side: int, followed: int, start: float, ready: Ready
) -> None:
    many = np.broadcast_to(np.uint8(0), (images, side, side, 3))
    found = replace(ready, pixels=many, start=start).followed
    assert len(set(found)) == followed
    gaps = np.diff([found[-1] - images, *found])
    assert gaps.max() - gaps.min() <= 1


@pytest.mark.slow
def test_the_rounding_nearest_to_float32_on_other_images_comes_first(
    ready: Ready, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three that follow other images, 12 each; measured here with the written models."""
    monkeypatch.setattr("xfeat.export.quantization.int8._FOLLOWED", 1)
    rng = np.random.default_rng(0)
    many = rng.integers(0, 128, (60, 64, 64, 3), dtype=np.uint8) + rng.integers(0, 128, (60, 1, 1, 3), dtype=np.uint8)
    features, logits = run_model(ready.model, many, [ready.features_name, "logits"])
    told: list[tuple[int, int]] = []
    found = round_repeatedly(
        replace(ready, pixels=many, features=features, logits=logits), progress=lambda *each: told.append(each)
    )
    errors = []
    for following, rounded in found:
        model = write_int8(following, rounded, following.head_bits[0])
        others = np.delete(np.arange(60), following.followed)
        error = run_model(model, many[others], ["logits"])[0] - logits[others]
        errors.append(np.sqrt(np.square(error[:, 1] - error[:, 0]).mean()))
    assert len({following.start for following, _ in found}) == len(set(errors)) == 3
    assert errors == sorted(errors)
    assert [done for done, _ in told] == list(range(1, told[-1][1] + 1))


@pytest.mark.slow
def test_where_all_images_are_followed_there_is_one_rounding(ready: Ready) -> None:
    ((following, _),) = round_repeatedly(ready)
    assert following.followed.tolist() == list(range(len(ready.pixels)))


@pytest.mark.parametrize(("low", "high"), [(-3.0, 5.0), (0.5, 6.0), (-2.0, -1.0)])
def test_levels_cover_all_values_and_zero(low: float, high: float) -> None:
    """Against torch's observer and fake quantisation."""
    values = np.random.default_rng(0).uniform(low, high, 5000).astype(np.float32)
    observer = MinMaxObserver(dtype=torch.quint8)
    observer(torch.from_numpy(values))
    scale, zero = observer.calculate_qparams()
    found = covering(values)
    assert float(found.step) == pytest.approx(float(scale), rel=1e-6)
    assert found.zero == int(zero)
    expected = torch.fake_quantize_per_tensor_affine(torch.from_numpy(values), float(scale), int(zero), 0, 255)
    np.testing.assert_allclose(found.round(values), expected, atol=1e-5)
    assert found.round(np.zeros(1, np.float32)) == 0


def test_a_channel_is_put_right_by_least_squares() -> None:
    """Against numpy.polyfit."""
    rng = np.random.default_rng(0)
    wanted = rng.normal(size=(4, 2, 5, 5)).astype(np.float32)
    given = 1.1 * wanted + 0.3 + 0.1 * rng.normal(size=wanted.shape).astype(np.float32)
    slope, shift = line(given, wanted)
    for channel in range(2):
        expected = np.polyfit(given[:, channel].ravel(), wanted[:, channel].ravel(), 1)
        np.testing.assert_allclose([slope[channel], shift[channel]], expected, rtol=1e-4)


@pytest.mark.parametrize(("groups", "side", "stride"), [(1, 1, 1), (1, 3, 2), (6, 3, 1)])
def test_a_rounded_weight_is_made_up_for_by_those_after_it(groups: int, side: int, stride: int) -> None:
    """Against a plain loop: after each weight, the best change of those left, by least squares over all patches."""
    rng = np.random.default_rng(0)
    inputs = (rng.normal(size=(4, 6, 1, 1)) + 0.3 * rng.normal(size=(4, 6, 9, 9))).astype(np.float32)
    weight = rng.normal(size=(6, 6 // groups, side, side)).astype(np.float32)
    scale = 8 * row_scale(weight)  # few levels, so that much is to be made up for
    pad = side // 2  # behind the last row and column alone, so that no two inputs of a window are equally used
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], group=groups, strides=[stride] * 2, pads=[0, 0, pad, pad])
    found = rounded_in_order(weight, scale, node, inputs)
    padded = torch.nn.functional.pad(torch.from_numpy(inputs), (0, pad, 0, pad))
    unfolded = torch.nn.functional.unfold(padded, side, stride=stride)
    patches = unfolded.transpose(1, 2).reshape(-1, groups, weight[0].size).double().numpy()
    for row in range(6):
        x = patches[:, row // (6 // groups)]
        x = x - x.mean(0)
        moments = x.T @ x / len(x)
        moments += np.eye(len(moments)) * (0.01 * np.diag(moments).mean() + 1e-12)
        wanted, left = weight[row].ravel().astype(np.float64), list(np.argsort(-np.diag(moments), kind="stable"))
        expected = np.empty(len(wanted))
        while left:
            place = left.pop(0)
            expected[place] = np.rint(wanted[place] / scale[row])
            error = wanted[place] - expected[place] * scale[row]
            if left:
                wanted[left] += np.linalg.solve(moments[np.ix_(left, left)], moments[left, place]) * error
        np.testing.assert_array_equal(found[row].ravel(), expected)


def test_the_first_block_ends_where_no_bound_follows(ready: Ready) -> None:
    assert first_block(ready) == ("_conv_stem", "_blocks.0._depthwise_conv", "_blocks.0._project_conv")


@pytest.mark.slow
def test_rounding_in_order_costs_less_than_rounding_each_layer_alone(
    ready: Ready, rounded: Rounded, rounded_apart: Rounded
) -> None:
    in_order, apart = (feature_error(ready, each, len(ready.pixels)) for each in (rounded, rounded_apart))
    assert in_order < apart


def test_a_model_with_every_layer_in_float32_has_no_error(ready: Ready) -> None:
    assert feature_error(ready, round_ready(ready, ready.layers), len(ready.pixels)) < 1e-6


def test_layers_are_ranked_on_images_spread_evenly(ready: Ready, rounded: Rounded) -> None:
    """Exchanging the features of others changes nothing."""
    exchanged = ready.features.copy()
    exchanged[[1, 2, 3]] = ready.features[[2, 3, 1]]
    other = replace(ready, features=exchanged)
    assert feature_error(other, rounded, 2) == pytest.approx(feature_error(ready, rounded, 2), rel=1e-5)
    assert feature_error(other, rounded, 8) > 2 * feature_error(ready, rounded, 8)


@pytest.mark.slow
def test_the_bias_of_a_dead_channel_fits_into_32_bits(ready: Ready) -> None:
    """In units of both steps, as onnxruntime's convolutions add it."""
    model = copied(ready.model)
    graph = Graph(model)
    node = graph.convolutions[4]
    weight, bias = (graph.weight(name).copy() for name in node.input[1:])
    weight[0], bias[0] = 1e-30, 1
    graph.set_weight(node.input[1], weight)
    graph.set_weight(node.input[2], bias)
    rounded = round_ready(replace(ready, model=model))
    layer, step = rounded.layers[node.name], rounded.tensors[node.input[0]].step
    assert np.abs(layer.bias / (layer.scale.astype(np.float64) * step)).max() < 2**31
    assert layer.bias[0] == pytest.approx(1, abs=0.1)


@pytest.mark.slow
def test_onnxruntime_rounds_no_layer_of_its_own_accord(ready: Ready, tmp_path: Path) -> None:
    """Between layers in 8 bits it gives a float layer 8-bit weights with one scale, unless it is stopped."""
    model = folded(ready)
    write_rounded(model, round_ready(ready, [ready.layers[1]]))
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    operators = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert operators.count("QLinearConv") == len(ready.layers) - 1


def test_sums_are_rounded_for_convolutions_and_not_along_the_skips(ready: Ready, rounded: Rounded) -> None:
    model = folded(ready)
    write_rounded(model, rounded)
    producers = Graph(model).producers()
    added = [producers[name].op_type for node in Graph(model).nodes if node.op_type == "Add" for name in node.input]
    assert (added.count("Add"), added.count("DequantizeLinear")) == (4, 14)
    assert {producers[node.input[0]].op_type for node in Graph(model).convolutions[1:]} == {"DequantizeLinear"}


@pytest.mark.slow
def test_one_layer_alone_is_rounded(ready: Ready, rounded_apart: Rounded) -> None:
    alone = only(ready.backbone, rounded_apart, ready.layers[3])
    assert list(alone.layers) == [ready.layers[3]]
    assert len(alone.tensors) == 2
    assert 0 < feature_error(ready, alone, 8) < feature_error(ready, rounded_apart, 8)


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
