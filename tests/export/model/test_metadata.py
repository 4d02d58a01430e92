"""The metadata of a model: round trip, refusals, decisions."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from xfeat.export.model.metadata import ModelMetadata
from xfeat.featurize.errors import ModelError, SpecError
from xfeat.featurize.specs import FeatureSpec


def metadata(**changes: object) -> ModelMetadata:
    plain = ModelMetadata(
        variant="full",
        class_names=("a", "b", "c"),
        feature_spec=FeatureSpec(backbone="efficientnet-lite0", weights_sha256="0" * 64),
        cache_sha256="1" * 64,
        head_sha256="2" * 64,
        run="first",
        metrics={"test": {"accuracy": 0.5}},
    )
    return replace(plain, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"variant": "core", "temperature": 1.7, "positive": "b", "threshold": 0.25},
        {"ood_threshold": 1.5, "precision": "int8"},
    ],
)
def test_metadata_are_unchanged_by_writing_and_reading(changes: dict[str, object]) -> None:
    written = metadata(**changes)
    assert ModelMetadata.from_props(written.to_props(), "model.onnx") == written


def test_metadata_without_newer_fields_are_read_with_their_defaults() -> None:
    props = metadata(ood_threshold=2.0).to_props()
    older = json.loads(props["xfeat.metadata"])
    del older["ood_threshold"], older["precision"]
    props["xfeat.metadata"] = json.dumps(older)
    assert ModelMetadata.from_props(props, "model.onnx") == metadata()


def test_a_model_without_xfeat_metadata_is_refused() -> None:
    with pytest.raises(ModelError, match=r"some\.onnx: the model has no xfeat metadata") as caught:
        ModelMetadata.from_props({"producer": "x"}, "some.onnx")
    assert "xexport onnx" in str(caught.value)


def test_a_model_of_another_schema_version_is_refused() -> None:
    props = metadata().to_props() | {"xfeat.schema_version": "2"}
    with pytest.raises(ModelError, match="another schema version"):
        ModelMetadata.from_props(props, "model.onnx")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"variant": "full"}'])
def test_damaged_metadata_are_refused(text: str) -> None:
    props = metadata().to_props() | {"xfeat.metadata": text}
    with pytest.raises(ModelError, match="metadata cannot be read"):
        ModelMetadata.from_props(props, "model.onnx")


def test_an_unknown_field_is_refused() -> None:
    props = metadata().to_props()
    props["xfeat.metadata"] = json.dumps({**json.loads(props["xfeat.metadata"]), "surprise": 1})
    with pytest.raises(ModelError, match="surprise"):
        ModelMetadata.from_props(props, "model.onnx")


@pytest.mark.parametrize(
    "changes",
    [
        {"variant": "half"},
        {"class_names": ("a",)},
        {"temperature": 0},
        {"positive": "a"},
        {"threshold": 0.5},
        {"positive": "d", "threshold": 0.5},
        {"positive": "a", "threshold": 1.5},
        {"precision": "int4"},
    ],
)
def test_contradictory_metadata_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(SpecError):
        metadata(**changes)


def test_without_a_threshold_the_most_probable_class_is_predicted() -> None:
    assert metadata().decide([0.2, 0.5, 0.3]) == "b"


def test_the_positive_class_is_predicted_from_its_threshold_on_and_never_below() -> None:
    said = metadata(positive="a", threshold=0.3)
    assert said.decide([0.3, 0.6, 0.1]) == "a"
    assert said.decide([0.29, 0.41, 0.3]) == "b"
    assert metadata(positive="a", threshold=0.9).decide([0.8, 0.05, 0.15]) == "c"


def test_reading_metadata_needs_neither_torch_nor_onnx() -> None:
    code = "import sys, xfeat.export.model.metadata; print(sorted({'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
