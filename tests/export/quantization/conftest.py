"""A model prepared for 8 bits, and its quantised layers, computed once for all tests."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from xfeat.export.quantization.int8 import PreparedModel, prepare, quantize_backbone
from xfeat.export.quantization.rounding import QuantizedLayers
from xfeat.featurize.specs import PreprocessSpec


@pytest.fixture(scope="session")
def prepared(traced: onnx.ModelProto, pixels: np.ndarray) -> PreparedModel:
    """The small traced model, whose channels all have a mean and deviation of 0.5, as by default."""
    return prepare(traced, pixels, PreprocessSpec(size=pixels.shape[1]))


@pytest.fixture(scope="session")
def layers(prepared: PreparedModel) -> QuantizedLayers:
    return quantize_backbone(prepared)


@pytest.fixture(scope="session")
def layers_after_first_block(prepared: PreparedModel) -> QuantizedLayers:
    """All but stem and first block."""
    return quantize_backbone(prepared, prepared.first_block)
