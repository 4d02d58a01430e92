"""Verification of models: how changed, exchanged and damaged files are detected."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import Result

from xfeat.export.model.metadata import ModelMetadata
from xfeat.featurize.backbones.weights import sha256_of

Xexport = Callable[..., Result]


def rewrite(file: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(file)
    change(model)
    file.write_bytes(model.SerializeToString())


def negate_the_last_layer(model: onnx.ModelProto) -> None:
    gemm = next(node for node in reversed(model.graph.node) if "logits" in node.output)
    for tensor in model.graph.initializer:
        if tensor.name in gemm.input[1:]:
            tensor.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(tensor), tensor.name))


def change_metadata(**changes: object) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        said = ModelMetadata.from_props({p.key: p.value for p in model.metadata_props}, "model")
        onnx.helper.set_model_props(model, replace(said, **changes).to_props())

    return change


def forge_certificate(project: Any) -> None:
    """Write the hash of the changed model into the certificate, to hide the change."""
    facts = json.loads(project.certificate.read_text())
    facts["models"]["full"]["sha256"] = sha256_of(project.model)
    project.certificate.write_text(json.dumps(facts))


def test_the_exported_models_pass_without_their_run(xexport: Xexport, exported: Any, tmp_path: Path) -> None:
    for name in ("model.onnx", "model.core.onnx", "model.certificate.json"):
        shutil.copy(exported.folder / name, tmp_path)
    for name, checks in (("model.onnx", {"full", "resized_inside"}), ("model.core.onnx", {"core"})):
        done = xexport("verify", tmp_path / name, "--data", exported.data, "--json")
        assert done.exit_code == 0, done.output
        said = json.loads(done.stdout)
        assert said["reference"] == "certificate"
        assert set(said["checks"]["CPUExecutionProvider"]) == checks
        assert all(check["images"] == 12 for check in said["checks"]["CPUExecutionProvider"].values())


def test_with_its_run_torch_runs_again_and_no_certificate_is_needed(
    xexport: Xexport, exported: Any, tmp_path: Path
) -> None:
    alone = shutil.copy(exported.model, tmp_path)
    done = xexport("verify", alone, "--run", exported.run.folder, "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert (said["reference"], said["run"], said["certificate"]) == ("torch", "first", None)


def test_without_images_only_the_bytes_are_checked_and_the_text_says_so(xexport: Xexport, exported: Any) -> None:
    done = xexport("verify", exported.model)
    assert done.exit_code == 0
    assert "predictions were not compared" in done.stdout


def test_a_single_changed_bit_is_detected(xexport: Xexport, copied: Any) -> None:
    content = bytearray(copied.model.read_bytes())
    content[len(content) // 2] ^= 1
    copied.model.write_bytes(content)
    done = xexport("verify", copied.model)
    assert done.exit_code == 1
    assert "the model file does not match its certificate" in done.stderr


def test_other_weights_with_a_forged_certificate_are_detected_by_their_predictions(
    xexport: Xexport, copied: Any
) -> None:
    rewrite(copied.model, negate_the_last_layer)
    forge_certificate(copied)
    assert xexport("verify", copied.model).exit_code == 0  # the bytes are the forged ones
    done = xexport("verify", copied.model, "--data", copied.data)
    assert done.exit_code == 1
    assert "no longer gives the reference predictions" in done.stderr
    done = xexport("verify", copied.model, "--run", copied.run.folder)
    assert done.exit_code == 1
    assert "no longer gives the reference predictions" in done.stderr


def test_the_tolerance_in_a_certificate_is_not_used(xexport: Xexport, copied: Any) -> None:
    """On the core model, since files at original size have another tolerance."""
    rewrite(copied.core, negate_the_last_layer)
    facts = json.loads(copied.certificate.read_text())
    facts["models"]["core"]["sha256"] = sha256_of(copied.core)
    copied.certificate.write_text(json.dumps(facts | {"tolerance": 1.0}))
    for reference in (("--data", copied.data), ("--run", copied.run.folder)):
        done = xexport("verify", copied.core, "--certificate", copied.certificate, *reference)
        assert done.exit_code == 1
        assert "no longer gives the reference predictions" in done.stderr


# What a model says of itself, and a change of it.
CHANGED: dict[str, Callable[[Any], dict[str, object]]] = {
    "classes": lambda spec: {"class_names": ("disc", "bar")},
    "head": lambda spec: {"head_sha256": "0" * 64},
    "feature fingerprint": lambda spec: {
        "feature_spec": replace(spec, preprocess=replace(spec.preprocess, mean=(0.4, 0.4, 0.4)))
    },
    "backbone settings": lambda spec: {"feature_spec": replace(spec, weights_sha256="0" * 64)},
    "temperature": lambda spec: {"temperature": 3.0},
    "threshold": lambda spec: {"positive": "disc", "threshold": 0.99},
    "out-of-distribution threshold": lambda spec: {"ood_threshold": 99.0},
}


@pytest.mark.parametrize("against", ["certificate", "certificate with a forged digest", "run"])
@pytest.mark.parametrize("what", CHANGED)
def test_what_a_model_says_of_itself_is_compared_with_its_certificate_and_its_run(
    xexport: Xexport, copied: Any, what: str, against: str
) -> None:
    rewrite(copied.model, change_metadata(**CHANGED[what](copied.run.feature_spec)))
    if against == "run":
        copied.certificate.unlink()
        done = xexport("verify", copied.model, "--run", copied.run.folder)
        assert f"the model was not exported from run first: different {what}\n" in done.stderr
    else:
        if against != "certificate":
            forge_certificate(copied)
        done = xexport("verify", copied.model, "--data", copied.data)
        found = done.stderr.partition("with different ")[2].partition("\n")[0].split(", ")
        assert what in found
    assert done.exit_code == 1


def test_other_metadata_are_compared_as_well(xexport: Xexport, copied: Any) -> None:
    rewrite(copied.model, change_metadata(metrics={"test": {"accuracy": 1.0}}))
    assert "with different metadata\n" in xexport("verify", copied.model).stderr


def test_without_the_features_of_the_run_the_ood_threshold_is_not_compared(xexport: Xexport, copied: Any) -> None:
    (copied.folder / "features.h5").unlink()
    done = xexport("verify", copied.model, "--run", copied.run.folder)
    assert done.exit_code == 0, done.output
    assert "the out-of-distribution threshold was not compared" in done.stderr


def test_exchanged_weights_leave_the_metadata_unchanged(xexport: Xexport, copied: Any) -> None:
    rewrite(copied.model, negate_the_last_layer)
    assert ", with the same metadata" in xexport("verify", copied.model).stderr


def test_changed_images_are_left_out_and_counted(xexport: Xexport, copied: Any) -> None:
    shutil.copy(copied.data / "test/disc/0.png", copied.data / "test/bar/0.png")
    done = xexport("verify", copied.model, "--data", copied.data, "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["changed_images"] == 1
    assert said["checks"]["CPUExecutionProvider"]["full"]["images"] == 11


def test_a_folder_without_the_images_is_refused(xexport: Xexport, exported: Any, tmp_path: Path) -> None:
    done = xexport("verify", exported.model, "--data", tmp_path)
    assert done.exit_code == 1
    assert "none of the certificate's 12 images can be read" in done.stderr
    done = xexport("verify", exported.model, "--data", tmp_path / "nowhere")
    assert done.exit_code == 1
    assert f"{tmp_path / 'nowhere'}: folder not found" in done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "certificate not found"), ("{", "certificate cannot be read"), ("[]", "certificate cannot be read")],
)
def test_a_certificate_that_is_missing_or_damaged_is_named(
    xexport: Xexport, copied: Any, text: str | None, message: str
) -> None:
    copied.certificate.unlink() if text is None else copied.certificate.write_text(text)
    done = xexport("verify", copied.model)
    assert done.exit_code == 1
    assert message in done.stderr


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts["reference"][0].update(probabilities=[1.0]),
        lambda facts: facts["reference"][0].update(probabilities=["half", "half"]),
        lambda facts: facts["reference"][0].update(probabilities=[float("nan"), 1.0]),
        lambda facts: facts.update(metadata=None),
        lambda facts: facts.update(metadata=[1]),
        lambda facts: facts.update(models=[]),
    ],
    ids=["short", "text", "nan", "no metadata", "list", "models"],
)
def test_a_certificate_with_invalid_content_cannot_be_read(
    xexport: Xexport, copied: Any, change: Callable[[dict[str, Any]], None]
) -> None:
    facts = json.loads(copied.certificate.read_text())
    change(facts)
    copied.certificate.write_text(json.dumps(facts))
    done = xexport("verify", copied.model, "--data", copied.data)
    assert done.exit_code == 1
    assert "certificate cannot be read" in done.stderr


def test_missing_images_are_counted_in_json_in_text_and_in_a_warning(xexport: Xexport, copied: Any) -> None:
    (copied.data / "test/bar/0.png").unlink()
    done = xexport("verify", copied.model, "--data", copied.data, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["missing_images"] == 1
    counts = "1 of the certificate's 12 images are missing or unreadable; the model is checked on the other 11"
    assert f"warning: {copied.data}: {counts}" in done.stderr
    done = xexport("verify", copied.model, "--data", copied.data)
    assert "left out: 1 images that are missing or unreadable\n" in done.stdout
    done = xexport("verify", copied.model, "--run", copied.run.folder, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["missing_images"] == 1


def test_a_certificate_of_another_version_is_refused(xexport: Xexport, copied: Any) -> None:
    copied.certificate.write_text(copied.certificate.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    assert "another format or version" in xexport("verify", copied.model).stderr


@pytest.mark.parametrize("command", ["verify", "info", "explain", "bench"])
@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "model not found"), (b"no model", "not a model that onnxruntime can read"), (b"", "not a model")],
)
def test_every_command_names_a_file_that_is_not_a_model(
    xexport: Xexport, tmp_path: Path, command: str, content: bytes | None, message: str
) -> None:
    file = tmp_path / "m.onnx"
    if content is not None:
        file.write_bytes(content)
    done = xexport(command, file, *([tmp_path] if command == "explain" else []))
    assert done.exit_code == 1
    assert message in done.stderr


def test_every_command_refuses_a_model_without_metadata(xexport: Xexport, copied: Any) -> None:
    rewrite(copied.model, lambda model: model.metadata_props.clear())
    for command in (["verify"], ["info"], ["bench"], ["explain", copied.data]):
        done = xexport(command[0], copied.model, *command[1:])
        assert done.exit_code == 1
        assert "no xfeat metadata" in done.stderr


def test_info_shows_the_content_of_the_file(xexport: Xexport, exported: Any) -> None:
    """The expected sizes, operators and shapes are from onnx and onnxruntime."""
    said = json.loads(xexport("info", exported.model, "--json").stdout)
    model, session = onnx.load(exported.model), ort.InferenceSession(exported.model)
    assert said["bytes"] == exported.model.stat().st_size
    assert said["sha256"] == sha256_of(exported.model)
    assert said["class_names"] == ["bar", "disc"]
    assert (said["variant"], said["precision"], said["opset"]) == ("full", "float32", 18)
    assert said["certificate"] == "matches this file"
    assert sum(said["operators"].values()) == len(model.graph.node)
    assert said["parameters"] == sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    assert [(each["name"], each["shape"]) for each in said["outputs"]] == [
        (each.name, each.shape) for each in session.get_outputs()
    ]
    text = xexport("info", exported.model).stdout
    assert said["ood_kinds"] == json.loads(exported.certificate.read_text())["out_of_distribution"]
    for part in (
        "bar, disc",
        "the most probable class",
        "noise 8 of 8",
        "another hospital",
        "64×64",
        said["feature_fingerprint"],
        "Conv",
    ):
        assert part in text


def test_info_shows_that_a_certificate_does_not_match(xexport: Xexport, copied: Any) -> None:
    rewrite(copied.model, negate_the_last_layer)
    assert "does not match" in json.loads(xexport("info", copied.model, "--json").stdout)["certificate"]
