"""The first layer in 8 bits reads the grey levels of the image; compared with torch and float32."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from xfeat.export.build.graph import Graph
from xfeat.export.quantization.int8 import PreparedModel, prepare, quantize_backbone
from xfeat.export.quantization.qdq import write_layers
from xfeat.export.quantization.rounding import QuantizedLayers, dequantized
from xfeat.export.quantization.subgraphs import run_model
from xfeat.featurize.images.preprocess import Pixels
from xfeat.featurize.specs import NORMALIZATIONS, PreprocessSpec

pytestmark = pytest.mark.slow


def outputs_of_layer(model: onnx.ModelProto, place: int, pixels: Pixels) -> np.ndarray:
    return run_model(model, pixels, [Graph(model).convolutions[place].output[0]])[0]


def written(prepared: PreparedModel, layers: QuantizedLayers) -> onnx.ModelProto:
    model = deepcopy(prepared.backbone)
    write_layers(model, layers)
    return model


def test_the_first_layer_reads_grey_levels(prepared: PreparedModel, layers: QuantizedLayers, pixels: Pixels) -> None:
    """Compared with torch, which convolves 3 × 3 over grey levels minus 127; all levels occur, so none is cut off."""
    all_levels = np.arange(8 * 64 * 64 * 3).reshape(8, 64, 64, 3).astype(np.uint8)
    layer = layers.convolutions["_conv_stem"]
    weight = torch.from_numpy(dequantized(layer.weight, layer.scale)).double()
    for images in (pixels, all_levels):
        grey = torch.from_numpy(images).permute(0, 3, 1, 2).double() - 127
        padded = torch.nn.functional.pad(grey, (0, 1, 0, 1))
        expected = torch.nn.functional.conv2d(padded, weight, torch.from_numpy(layer.bias).double(), stride=2)
        found = outputs_of_layer(written(prepared, layers), 0, images)
        np.testing.assert_allclose(found, expected, atol=1e-4 * float(expected.abs().max()))


def test_it_reads_blocks_with_twelve_channels(prepared: PreparedModel, layers: QuantizedLayers) -> None:
    nodes = Graph(written(prepared, layers)).nodes
    assert [node.op_type for node in nodes[:3]] == ["QuantizeLinear", "SpaceToDepth", "DequantizeLinear"]
    assert "Sub" not in [node.op_type for node in nodes]


def test_a_first_block_in_float32_is_unchanged(
    prepared: PreparedModel, layers_after_first_block: QuantizedLayers, pixels: Pixels
) -> None:
    model = written(prepared, layers_after_first_block)
    assert [node.op_type for node in Graph(model).nodes[:2]] == ["Sub", "Conv"]
    np.testing.assert_array_equal(outputs_of_layer(model, 0, pixels), outputs_of_layer(prepared.backbone, 0, pixels))


def test_with_a_mean_per_channel_the_first_input_is_quantised_like_any_tensor(
    traced: onnx.ModelProto, pixels: Pixels
) -> None:
    mean, std = NORMALIZATIONS["imagenet"]
    prepared = prepare(traced, pixels, replace(PreprocessSpec(size=64), mean=mean, std=std))
    nodes = Graph(written(prepared, quantize_backbone(prepared))).nodes
    assert [node.op_type for node in nodes[:3]] == ["Sub", "QuantizeLinear", "DequantizeLinear"]
