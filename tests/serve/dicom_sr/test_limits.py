"""What DICOM can hold of a name, and what is said where the library is missing."""

from __future__ import annotations

import sys

import pytest

from xfeat.featurize.errors import MissingExtraError
from xfeat.serve.dicom_sr.identity import long_string
from xfeat.serve.dicom_sr.write import ReportBuilder


def test_without_highdicom_the_extra_is_named(predictor, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(MissingExtraError, match=r"xfeat-onnx\[dicom-sr\]"):
        ReportBuilder(predictor)


@pytest.mark.parametrize(("text", "expected"), [("", "-"), ("a\\b", "a/b"), ("x" * 65, "x" * 63 + "…")])
def test_a_long_string_has_at_most_64_characters_and_no_backslash(text, expected):
    assert long_string(text) == expected
