"""Static INT8 of encoders that are no EfficientNets: what it refuses. test_any_encoder.py quantises a resnet18."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.export.build.test_compose import composed, in_8_bits, reference_of
from tests.export.encoders import SIDE, build_encoder, write_encoder
from xfeat.export.quantization.static_int8 import RANGES, quantize_encoder
from xfeat.featurize.errors import ModelError


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "reason"),
    [
        (build_encoder(batch=4), "a fixed number of images"),
        (in_8_bits(build_encoder()), "in 8 bits already"),
    ],
    ids=["fixed batch", "8 bits"],
)
def test_an_encoder_that_cannot_be_quantised_is_refused_with_the_reason(
    tmp_path: Path, encoder: onnx.ModelProto, reason: str
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE, 3), dtype=np.uint8)
    traced = composed(reference_of(write_encoder(tmp_path / "encoder.onnx", encoder)))
    with pytest.raises(ModelError, match="cannot be quantised") as refusal:
        quantize_encoder(traced, pixels, next(iter(RANGES.values())))
    assert reason in str(refusal.value.found)
    assert "--fp16" in str(refusal.value.fix)
