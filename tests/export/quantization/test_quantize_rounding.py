"""Preparing a model for 8 bits and quantising its layers; compared with float32, torch and numpy."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch.ao.quantization import MinMaxObserver

from xfeat.export.build.graph import Graph, attribute
from xfeat.export.quantization.equalization import fold_normalisation
from xfeat.export.quantization.gptq import gptq_round
from xfeat.export.quantization.int8 import PreparedModel, quantize_backbone
from xfeat.export.quantization.qdq import write_layers
from xfeat.export.quantization.rounding import QuantizedLayers, channel_scales, least_squares, min_max_scale
from xfeat.export.quantization.subgraphs import features_name, run_model
from xfeat.featurize.specs import NORMALIZATIONS, PreprocessSpec

pytestmark = pytest.mark.slow

SPEC = PreprocessSpec(size=64)


def test_a_prepared_model_computes_the_same(
    traced: onnx.ModelProto, prepared: PreparedModel, pixels: np.ndarray
) -> None:
    expected = run_model(traced, pixels, [features_name(traced)])[0]
    found = run_model(prepared.model, pixels, [prepared.features_name])[0]
    assert np.abs(found - expected).max() < 1e-3 * expected.std()


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_the_first_layer_normalises(traced: onnx.ModelProto, pixels: np.ndarray, name: str) -> None:
    """Compared with torch, which divides by the deviation before it convolves."""
    mean, std = NORMALIZATIONS[name]
    model = deepcopy(traced)
    first = Graph(model).convolutions[0]
    weight = torch.tensor(Graph(model).weight(first.input[1]), dtype=torch.float64)
    fold_normalisation(model, replace(SPEC, mean=mean, std=std))
    assert [node.op_type for node in Graph(model).nodes[:2]] == ["Sub", "Conv"]
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).double() / 255
    centred = (images - torch.tensor(mean).view(1, -1, 1, 1)) / torch.tensor(std).view(1, -1, 1, 1)
    padded = torch.nn.functional.pad(centred, [attribute(first, "pads", None)[side] for side in (1, 3, 0, 2)])
    expected = torch.nn.functional.conv2d(padded, weight, stride=2)
    expected += torch.tensor(Graph(model).weight(first.input[2])).view(1, -1, 1, 1)
    np.testing.assert_allclose(run_model(model, pixels, [first.output[0]])[0], expected, atol=1e-4)


def test_channels_without_a_bound_have_the_same_range(prepared: PreparedModel, pixels: np.ndarray) -> None:
    """In a sum, the widest channel of all summands counts."""
    graph = Graph(prepared.backbone)
    names = [node.output[0] for node in graph.convolutions if "project" in node.name]
    alone = [name for name in names if not any(node.op_type == "Add" for node in graph.readers()[name])]
    assert len(names) > len(alone) > 1
    for values in run_model(prepared.model, pixels, alone):
        largest = np.abs(values).max((0, 2, 3))
        np.testing.assert_allclose(largest, largest.max(), rtol=1e-2)


@pytest.mark.parametrize(("images", "side", "selected"), [(300, 224, 32), (40, 224, 32), (9, 224, 9), (300, 448, 8)])
def test_layers_are_quantised_on_images_spread_evenly(
    images: int, side: int, selected: int, prepared: PreparedModel
) -> None:
    many = np.broadcast_to(np.uint8(0), (images, side, side, 3))
    found = replace(prepared, pixels=many).selected
    assert len(set(found)) == selected
    gaps = np.diff([found[-1] - images, *found])
    assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize(("low", "high"), [(-3.0, 5.0), (0.5, 6.0), (-2.0, -1.0)])
def test_levels_cover_all_values_and_zero(low: float, high: float) -> None:
    """Compared with torch's observer and fake quantisation."""
    values = np.random.default_rng(0).uniform(low, high, 5000).astype(np.float32)
    observer = MinMaxObserver(dtype=torch.quint8)
    observer(torch.from_numpy(values))
    scale, zero = observer.calculate_qparams()
    found = min_max_scale(values)
    assert float(found.step) == pytest.approx(float(scale), rel=1e-6)
    assert found.zero_point == int(zero)
    expected = torch.fake_quantize_per_tensor_affine(torch.from_numpy(values), float(scale), int(zero), 0, 255)
    np.testing.assert_allclose(found.quantized(values), expected, atol=1e-5)
    assert found.quantized(np.zeros(1, np.float32)) == 0


def test_factor_and_shift_per_channel_are_by_least_squares() -> None:
    """Compared with numpy.polyfit."""
    rng = np.random.default_rng(0)
    wanted = rng.normal(size=(4, 2, 5, 5)).astype(np.float32)
    given = 1.1 * wanted + 0.3 + 0.1 * rng.normal(size=wanted.shape).astype(np.float32)
    factor, shift = least_squares(given, wanted)
    for channel in range(2):
        expected = np.polyfit(given[:, channel].ravel(), wanted[:, channel].ravel(), 1)
        np.testing.assert_allclose([factor[channel], shift[channel]], expected, rtol=1e-4)


@pytest.mark.parametrize(("groups", "side", "stride"), [(1, 1, 1), (1, 3, 2), (6, 3, 1)])
def test_later_weights_compensate_a_rounded_weight(groups: int, side: int, stride: int) -> None:
    """Compared with a plain loop: after each weight, the least-squares change of those left, over all patches."""
    rng = np.random.default_rng(0)
    inputs = (rng.normal(size=(4, 6, 1, 1)) + 0.3 * rng.normal(size=(4, 6, 9, 9))).astype(np.float32)
    weight = rng.normal(size=(6, 6 // groups, side, side)).astype(np.float32)
    scale = 8 * channel_scales(weight)  # few levels, so that there is much to compensate
    pad = side // 2  # after the last row and column only, so that no two inputs of a window have the same variance
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], group=groups, strides=[stride] * 2, pads=[0, 0, pad, pad])
    found = gptq_round(weight, scale, node, inputs)
    padded = torch.nn.functional.pad(torch.from_numpy(inputs), (0, pad, 0, pad))
    unfolded = torch.nn.functional.unfold(padded, side, stride=stride)
    patches = unfolded.transpose(1, 2).reshape(-1, groups, weight[0].size).double().numpy()
    for row in range(6):
        x = patches[:, row // (6 // groups)]
        x = x - x.mean(0)
        covariance = x.T @ x / len(x)
        covariance += np.eye(len(covariance)) * (0.01 * np.diag(covariance).mean() + 1e-12)
        wanted, left = weight[row].ravel().astype(np.float64), list(np.argsort(-np.diag(covariance), kind="stable"))
        expected = np.empty(len(wanted))
        while left:
            place = left.pop(0)
            expected[place] = np.rint(wanted[place] / scale[row])
            error = wanted[place] - expected[place] * scale[row]
            if left:
                wanted[left] += np.linalg.solve(covariance[np.ix_(left, left)], covariance[left, place]) * error
        np.testing.assert_array_equal(found[row].ravel(), expected)


def test_the_first_block_ends_with_the_first_layer_without_activation(prepared: PreparedModel) -> None:
    assert prepared.first_block == ("_conv_stem", "_blocks.0._depthwise_conv", "_blocks.0._project_conv")


def test_with_every_layer_in_float32_features_are_the_same(prepared: PreparedModel, pixels: np.ndarray) -> None:
    names = [node.name for node in Graph(prepared.model).convolutions]
    layers = quantize_backbone(prepared, names)
    assert layers == QuantizedLayers()
    model = deepcopy(prepared.backbone)
    write_layers(model, layers)
    found = run_model(model, pixels, [prepared.features_name])[0]
    assert np.abs(found - prepared.features).max() < 1e-3 * prepared.features.std()


@pytest.mark.slow
def test_correcting_each_layer_reduces_the_error(prepared: PreparedModel, layers: QuantizedLayers) -> None:
    """Compared with nearest levels of the same scales and the float32 biases, by numpy."""
    graph = Graph(prepared.backbone)
    plain = QuantizedLayers(activations=layers.activations)
    for node in graph.convolutions:
        weight, bias = (graph.weight(name) for name in node.input[1:])
        scale = channel_scales(weight)
        levels = np.rint(weight / scale.reshape(-1, 1, 1, 1)).astype(np.int8)
        plain.convolutions[node.name] = replace(layers.convolutions[node.name], weight=levels, scale=scale, bias=bias)
    errors = []
    for each in (layers, plain):
        model = deepcopy(prepared.backbone)
        write_layers(model, each)
        found = run_model(model, prepared.pixels, [prepared.features_name])[0]
        errors.append(np.square(found - prepared.features).mean())
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.slow
def test_the_bias_of_a_dead_channel_fits_into_32_bits(prepared: PreparedModel) -> None:
    """In units of both steps, as onnxruntime's convolutions add it."""
    model = deepcopy(prepared.model)
    graph = Graph(model)
    node = graph.convolutions[4]
    weight, bias = (graph.weight(name).copy() for name in node.input[1:])
    weight[0], bias[0] = 1e-30, 1
    graph.set_weight(node.input[1], weight)
    graph.set_weight(node.input[2], bias)
    layers = quantize_backbone(replace(prepared, model=model))
    layer, step = layers.convolutions[node.name], layers.activations[node.input[0]].step
    assert np.abs(layer.bias / (layer.scale.astype(np.float64) * step)).max() < 2**31
    assert layer.bias[0] == pytest.approx(1, abs=0.1)


@pytest.mark.slow
def test_onnxruntime_computes_all_layers_but_the_first_block_in_8_bits(
    prepared: PreparedModel, layers_after_first_block: QuantizedLayers, tmp_path: Path
) -> None:
    """A float convolution between two layers in 8 bits would be quantised by onnxruntime itself, with one scale."""
    model = deepcopy(prepared.backbone)
    write_layers(model, layers_after_first_block)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    graph = Graph(onnx.load(tmp_path / "optimised.onnx"))
    operators = [node.op_type for node in graph.nodes if "Conv" in node.op_type]
    assert operators == ["Conv"] * 3 + ["QLinearConv"] * (len(Graph(model).convolutions) - 3)


def test_sums_are_quantised_for_convolutions_and_not_along_the_skips(
    prepared: PreparedModel, layers: QuantizedLayers
) -> None:
    model = deepcopy(prepared.backbone)
    write_layers(model, layers)
    producers = Graph(model).producers()
    added = [producers[name].op_type for node in Graph(model).nodes if node.op_type == "Add" for name in node.input]
    assert (added.count("Add"), added.count("DequantizeLinear")) == (4, 14)
    assert {producers[node.input[0]].op_type for node in Graph(model).convolutions[1:]} == {"DequantizeLinear"}
