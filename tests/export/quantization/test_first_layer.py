"""The first layer in 8 bits: grey levels as they are, finer levels for one channel; against torch and float32."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from xfeat.export.quantization.first_layer import dither_stem
from xfeat.export.quantization.int8 import Ready, make_ready, round_ready
from xfeat.export.quantization.onnx_graph import Graph, copied, run_model
from xfeat.export.quantization.qdq import write_rounded
from xfeat.export.quantization.rounding import Rounded, widened
from xfeat.featurize.images.preprocess import Pixels
from xfeat.featurize.specs import NORMALIZATIONS, PreprocessSpec

SPEC = PreprocessSpec(size=64)
UNREACHED = [3, 11]


@pytest.fixture
def with_unreached(ready: Ready) -> onnx.ModelProto:
    """A model whose first layer has channels that are below zero for any image."""
    model = copied(ready.model)
    graph = Graph(model)
    weight, bias = (graph.weight(name).copy() for name in graph.convolutions[0].input[1:])
    weight[UNREACHED], bias[UNREACHED] = 0, -1
    for name, values in zip(graph.convolutions[0].input[1:], (weight, bias), strict=True):
        graph.set_weight(name, values)
    return model


def outputs_of_layer(model: onnx.ModelProto, place: int, pixels: Pixels) -> np.ndarray:
    return run_model(model, pixels, [Graph(model).convolutions[place].output[0]])[0]


def largest_of_any_image(graph: Graph) -> np.ndarray:
    """Return the largest value (C,) that the first layer can have, by the pixel that each weight likes best."""
    weight, bias = (graph.weight(name).astype(np.float64) for name in graph.convolutions[0].input[1:])
    return bias + np.where(weight > 0, 127.5 * weight, -127.5 * weight).sum((1, 2, 3))


def test_the_first_layer_reads_the_grey_levels_as_they_are(ready: Ready, rounded: Rounded, pixels: Pixels) -> None:
    """Against torch, which convolves 3 × 3 over grey levels less 127; all levels occur, so none is cut off."""
    all_levels = np.arange(8 * 64 * 64 * 3).reshape(8, 64, 64, 3).astype(np.uint8)
    model = copied(ready.backbone)
    write_rounded(model, rounded)
    layer = rounded.layers["_conv_stem"]
    weight = torch.from_numpy(widened(layer.weight, layer.scale)).double()
    for images in (pixels, all_levels):
        grey = torch.from_numpy(images).permute(0, 3, 1, 2).double() - 127
        padded = torch.nn.functional.pad(grey, (0, 1, 0, 1))
        expected = torch.nn.functional.conv2d(padded, weight, torch.from_numpy(layer.bias).double(), stride=2)
        found = outputs_of_layer(model, 0, images)
        np.testing.assert_allclose(found, expected, atol=1e-4 * float(expected.abs().max()))


def test_it_reads_blocks_of_twelve_channels(ready: Ready, rounded: Rounded) -> None:
    model = copied(ready.backbone)
    write_rounded(model, rounded)
    nodes = Graph(model).nodes
    assert [node.op_type for node in nodes[:3]] == ["QuantizeLinear", "SpaceToDepth", "DequantizeLinear"]
    assert "Sub" not in [node.op_type for node in nodes]


@pytest.mark.slow
def test_a_first_layer_in_float32_is_left_as_it_is(ready: Ready, pixels: Pixels) -> None:
    model = copied(ready.backbone)
    write_rounded(model, round_ready(ready, ready.layers[:3]))
    assert [node.op_type for node in Graph(model).nodes[:2]] == ["Sub", "Conv"]
    np.testing.assert_array_equal(outputs_of_layer(model, 0, pixels), outputs_of_layer(ready.backbone, 0, pixels))


@pytest.mark.slow
def test_channels_with_means_of_their_own_are_rounded_as_any_tensor(traced: onnx.ModelProto, pixels: Pixels) -> None:
    mean, std = NORMALIZATIONS["imagenet"]
    ready = make_ready(traced, pixels, replace(SPEC, mean=mean, std=std))
    assert not ready.reads_grey_levels
    model = copied(ready.backbone)
    write_rounded(model, round_ready(ready))
    assert [node.op_type for node in Graph(model).nodes[:3]] == ["Sub", "QuantizeLinear", "DequantizeLinear"]


def test_copies_in_channels_that_no_image_reaches_change_no_answer(
    with_unreached: onnx.ModelProto, pixels: Pixels
) -> None:
    expected = outputs_of_layer(with_unreached, 2, pixels)
    first = Graph(with_unreached).convolutions[0].input[1]
    before = Graph(with_unreached).weight(first)
    dither_stem(with_unreached)
    after = Graph(with_unreached).weight(first)
    assert not before[UNREACHED].any()
    same = [place for place in range(len(after)) if np.array_equal(after[place], after[UNREACHED[0]])]
    assert len(same) == 3
    assert set(UNREACHED) < set(same)
    off = np.abs(outputs_of_layer(with_unreached, 2, pixels) - expected) / expected.std()
    # where the second layer pads, and where a bound cuts copies off first, it is by less than a level
    assert off.max() < 0.05
    assert np.median(off[:, :, 1:-1, 1:-1]) < 1e-4


def test_a_channel_and_its_copies_are_together_nearer_to_float32(
    ready: Ready, with_unreached: onnx.ModelProto, pixels: Pixels
) -> None:
    """Behind the block's last layer, where only the first layer's output is rounded."""
    dithered = copied(with_unreached)
    dither_stem(dithered)
    errors = []
    for model in (with_unreached, dithered):
        graph = Graph(model)
        bound = graph.readers()[graph.convolutions[0].output[0]][0]
        expected = outputs_of_layer(model, 2, pixels)
        name, reader = bound.output[0], graph.convolutions[1]
        for part, value in (("step", np.float32(6 / 255)), ("zero", np.uint8(0))):
            graph.set_weight(part, np.asarray(value))
        make = onnx.helper.make_node
        graph.insert_behind(name, make("QuantizeLinear", [name, "step", "zero"], ["levels"]), [reader])
        graph.insert_behind("levels", make("DequantizeLinear", ["levels", "step", "zero"], ["held"]), [reader])
        errors.append(float(np.square(outputs_of_layer(model, 2, pixels) - expected).mean()))
    assert errors[1] < 0.9 * errors[0]


def test_a_model_without_such_channels_is_left_as_it_is(ready: Ready) -> None:
    model = copied(ready.model)
    assert (largest_of_any_image(Graph(model)) > 0).all()
    dither_stem(model)
    assert model == ready.model
