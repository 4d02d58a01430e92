"""Settings that are out of range, and what the error says is expected."""

from __future__ import annotations

from typing import Any

import pytest

from xfeat.export.specs import BenchSpec, ExportSpec, QuantizeSpec, TritonSpec, VerifySpec
from xfeat.featurize.errors import SpecError


@pytest.mark.parametrize(
    ("spec", "settings", "expected"),
    [
        (ExportSpec, {"opset": 11}, "13 or 18"),
        (ExportSpec, {"tolerance": 0.0}, "above 0, at most 1"),
        (VerifySpec, {"gate": -0.1}, "0 or more percentage points"),
        (BenchSpec, {"providers": ("tpu",)}, "cpu or cuda"),
        (QuantizeSpec, {"precision": "int4"}, "int8 or float16"),
        (QuantizeSpec, {"calibration_images": 0}, "1 or more"),
        (TritonSpec, {"instances": 0}, "1 to 2147483647"),
    ],
    ids=str,
)
def test_an_error_names_the_range_that_is_expected(spec: type, settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(SpecError) as problem:
        spec(**settings)
    assert f"expected: {expected}\n" in str(problem.value)
