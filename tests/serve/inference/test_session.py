"""Opening model files: a file that is not a model and a missing device are named in one message."""

from __future__ import annotations

import onnx
import pytest

from xfeat.featurize.errors import DeviceError, ModelError, SpecError
from xfeat.featurize.specs import FeatureSpec, PreprocessSpec
from xfeat.featurize.system.cuda import cuda_driver_present
from xfeat.serve.inference.predictor import Predictor


def test_a_missing_model_names_the_command_that_writes_one(tmp_path):
    with pytest.raises(ModelError, match="model not found") as problem:
        Predictor.open(tmp_path / "model.onnx")
    assert "xexport onnx" in str(problem.value)
    assert str(tmp_path / "model.onnx") in str(problem.value)


def test_a_folder_is_not_a_model(tmp_path):
    with pytest.raises(ModelError, match="Is a directory"):
        Predictor.open(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"PK\x03\x04 not a model", b"\x08\x0a"], ids=repr)
def test_a_file_of_another_kind_is_not_a_model(tmp_path, content):
    path = tmp_path / "other.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"other\.onnx") as problem:
        Predictor.open(path)
    assert "export or copy it again" in str(problem.value)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9, 0.99])
def test_a_model_truncated_at_any_place_is_an_error_that_names_it(model, share):
    whole = model.read_bytes()
    model.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ModelError, match=r"model\.onnx"):
        Predictor.open(model)


def test_a_model_of_other_software_lacks_the_metadata(model):
    stripped = onnx.load(model)
    del stripped.metadata_props[:]
    onnx.save(stripped, model)
    with pytest.raises(ModelError, match="no xfeat metadata"):
        Predictor.open(model)


def test_a_model_of_another_schema_version_is_rejected(model):
    later = onnx.load(model)
    for entry in later.metadata_props:
        if entry.key == "xfeat.schema_version":
            entry.value = "2"
    onnx.save(later, model)
    with pytest.raises(ModelError, match="another schema version"):
        Predictor.open(model)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"class_names": ("a", "b")}, "outputs do not match"),
        (
            {"feature_spec": FeatureSpec(backbone="b", weights_sha256="0" * 64, preprocess=PreprocessSpec(size=64))},
            "inputs do not match",
        ),
        ({"variant": "core"}, "inputs do not match"),
    ],
    ids=["classes", "size", "variant"],
)
def test_a_graph_that_contradicts_its_metadata_is_rejected(tiny, tmp_path, changes, what):
    model = tiny.build(tiny.describe())
    onnx.helper.set_model_props(model, tiny.describe(**changes).to_props())
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ModelError, match=what):
        Predictor.open(tmp_path / "model.onnx")


def test_a_graph_without_probabilities_is_rejected(model):
    graph = onnx.load(model)
    del graph.graph.output[0]
    onnx.save(graph, model)
    with pytest.raises(ModelError, match="outputs do not match") as problem:
        Predictor.open(model)
    assert "logits" in str(problem.value)


def test_an_unknown_device_is_rejected(model):
    with pytest.raises(SpecError, match="unknown device"):
        Predictor.open(model, device="tpu")


@pytest.mark.skipif(cuda_driver_present(), reason="this machine has a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_a_missing_gpu_is_an_error_without_fallback_to_the_cpu(model, device, capfd):
    with pytest.raises(DeviceError, match="cannot use cuda"):
        Predictor.open(model, device=device)
    assert capfd.readouterr() == ("", "")


def test_a_damaged_model_is_not_blamed_on_the_gpu(model):
    model.write_bytes(b"damaged")
    with pytest.raises(ModelError, match="not a model"):
        Predictor.open(model, device="cuda")


def test_auto_says_where_it_runs(model):
    predictor = Predictor.open(model)
    assert predictor.device == ("cpu" if not cuda_driver_present() else predictor.device)
    assert predictor.batch_size == (8 if predictor.device == "cpu" else 64)
