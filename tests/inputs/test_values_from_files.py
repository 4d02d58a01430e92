"""Values that a file gives are refused with the name of the field, whatever their type. One table for all settings."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from xfeat.export.model.metadata import ModelMetadata
from xfeat.featurize.errors import ModelError, SpecError
from xfeat.featurize.specs import FeatureSpec, PreprocessSpec
from xfeat.featurize.typed_json import check_types, parse_json
from xfeat.head.evaluation.assess import Calibration
from xfeat.head.specs import HeadSpec, TrainSpec

FEATURES = FeatureSpec(backbone="efficientnet-lite0", weights_sha256="0" * 64)
METADATA = ModelMetadata(
    variant="full", class_names=("a", "b"), feature_spec=FEATURES, cache_sha256="c", head_sha256="h", run="r"
)
SETTINGS = [PreprocessSpec(), FEATURES, HeadSpec(), TrainSpec(), METADATA]
# Of every kind that JSON has; a file's 1e400 and NaN are refused by the parser.
WRONG = [None, True, -1, 1.5, 10**30, "text", "", [], ["a", 1], [[1]], {}, {"a": {"b": []}}]


@pytest.mark.parametrize("spec", SETTINGS, ids=lambda spec: type(spec).__name__)
@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_a_setting_is_refused_or_valid_and_never_another_exception(spec: Any, wrong: object) -> None:
    stored = spec.to_dict()
    for field in dataclasses.fields(spec):
        try:
            opened = type(spec).from_dict({**stored, field.name: wrong})
        except SpecError:
            continue
        check_types(vars(opened), type(spec))
        json.dumps(opened.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": "1"}, "temperature: str is neither float or int, but '1'"),
        ({"class_names": ["a", "a"]}, "a class name stands twice"),
        ({"class_names": [["a"], ["b"]]}, "class_names"),
        ({"class_names": "ab"}, "class_names: str is not a tuple"),
        ({"ood_threshold": []}, "ood_threshold"),
        ({"feature_spec": 3}, "settings of FeatureSpec are not an object"),
        ({"feature_spec": {**FEATURES.to_dict(), "preprocess": {"mean": ["x", 0, 0]}}}, "mean: item 0"),
        ({"positive": "a", "threshold": "0.5"}, "threshold"),
        ({"float_layers": [1]}, "float_layers: item 0"),
    ],
)
def test_metadata_of_a_model_name_the_field(changes: dict[str, Any], message: str) -> None:
    props = {**METADATA.to_props(), "xfeat.metadata": json.dumps(METADATA.to_dict() | changes)}
    with pytest.raises(ModelError, match="metadata cannot be read") as refused:
        ModelMetadata.from_props(props, "m.onnx")
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "text", ["NaN", "-Infinity", "1e400", '{"a": [NaN]}', "[" * 100_000, "9" * 5000, "", "{", "\xff"]
)
def test_json_that_is_none(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (json's own words, by kind)
        parse_json(text.encode("latin-1"))


def test_typed_dictionaries_are_checked_down_to_their_items() -> None:
    @dataclasses.dataclass
    class Holder:
        calibration: Calibration

    good: dict[str, Any] = {"temperature": 1, "note": "", "before": {"test": {"loss": 0.5}}, "after": {}}
    check_types({"calibration": good}, Holder)
    for wrong in ({"temperature": None}, {"before": {"test": {"loss": "low"}}}, {"after": []}):
        with pytest.raises(ValueError, match="calibration: .*" + next(iter(wrong))):
            check_types({"calibration": {**good, **wrong}}, Holder)
