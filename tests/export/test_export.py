"""Exported model files against the run they were exported from."""

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
import torch
from click.testing import Result
from PIL import Image
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.preprocessing import normalize

from xfeat.export.build.reference_model import metadata_of
from xfeat.export.export import export_run
from xfeat.export.model.file import ModelFile
from xfeat.export.model.metadata import ModelMetadata
from xfeat.export.parity.checks import onnx_probabilities
from xfeat.export.parity.ood_kinds import made_kinds
from xfeat.featurize.backbones.weights import sha256_of
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.errors import OutputError
from xfeat.featurize.images.preprocess import load_pixels
from xfeat.head.evaluation.study import plain_accuracy

Xexport = Callable[..., Result]


def session(file: Path) -> ort.InferenceSession:
    return ort.InferenceSession(file, providers=["CPUExecutionProvider"])


def pixels_of(project: Any, split: str = "test") -> tuple[list[str], np.ndarray]:
    rows = [row for row in project.run.predictions() if row["split"] == split]
    spec = project.run.feature_spec.preprocess
    return [row["path"] for row in rows], np.stack(
        [load_pixels((project.data / row["path"]).read_bytes(), spec) for row in rows]
    )


def recorded(project: Any, split: str = "test") -> np.ndarray:
    rows = [row for row in project.run.predictions() if row["split"] == split]
    return np.array([[float(row[f"p_{name}"]) for name in project.run.class_names] for row in rows])


def as_planes(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32)


def test_both_models_give_the_probabilities_in_predictions_csv(exported: Any) -> None:
    _, pixels = pixels_of(exported)
    full = session(exported.model).run(["probabilities"], {"image": pixels})[0]
    core = session(exported.core).run(["probabilities"], {"image": as_planes(pixels)})[0]
    np.testing.assert_allclose(full, recorded(exported), atol=1e-5)
    np.testing.assert_allclose(core, full, atol=1e-6)


def test_probabilities_are_the_softmax_of_the_logits(exported: Any) -> None:
    _, pixels = pixels_of(exported)
    probabilities, logits = session(exported.model).run(["probabilities", "logits"], {"image": pixels})
    np.testing.assert_allclose(probabilities, torch.softmax(torch.from_numpy(logits), 1).numpy(), atol=1e-6)


def test_the_full_model_takes_uint8_images_of_any_size_and_the_core_model_float32_of_one_size(exported: Any) -> None:
    (image,) = session(exported.model).get_inputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(uint8)", ["N", "H", "W", 3])
    (image,) = session(exported.core).get_inputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(float)", ["N", 3, exported.side, exported.side])


def test_the_outputs_are_those_of_the_contract(exported: Any) -> None:
    full = {output.name: output.shape for output in session(exported.model).get_outputs()}
    assert full == {
        "probabilities": ["N", 2],
        "logits": ["N", 2],
        "heatmap": ["N", 2, 2, 2],
        "ood": ["N"],
        "decision": ["N"],
    }
    core = {output.name: output.shape for output in session(exported.core).get_outputs()}
    assert core == {"probabilities": ["N", 2], "logits": ["N", 2]}


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_batch_size_gives_the_same_outputs_as_single_images(exported: Any, count: int) -> None:
    _, pixels = pixels_of(exported)
    model = session(exported.model)
    batched = model.run(None, {"image": pixels[:count]})
    for number in range(count):
        for whole, alone in zip(batched, model.run(None, {"image": pixels[number : number + 1]}), strict=True):
            np.testing.assert_allclose(whole[number], alone[0], atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (20_000, 20), (20, 20_000), (333, 77)])
def test_images_of_unusual_sizes_give_the_outputs_of_a_resize_by_pillow(exported: Any, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    resized = np.asarray(Image.fromarray(image).resize((exported.side, exported.side), Image.Resampling.BILINEAR))
    model = session(exported.model)
    found = model.run(["probabilities"], {"image": image[None]})[0]
    np.testing.assert_allclose(found, model.run(["probabilities"], {"image": resized[None]})[0], atol=0.05)


def test_the_ood_score_is_the_distance_to_the_fifth_training_image_in_units_of_that_of_its_tenth(exported: Any) -> None:
    cache = FeatureCache.open(exported.folder / "features.h5")
    train = np.asarray(cache.features[np.asarray(cache.columns.split) == 0], np.float64)
    test = cache.features[[cache.columns.path.index(path) for path in pixels_of(exported)[0]]]
    weight = 0.25 * np.sqrt(normalize(train).var(0).sum()) / np.log(np.linalg.norm(train, axis=1)).std()
    train, test = (
        np.column_stack([normalize(rows), weight * np.log(np.linalg.norm(rows, axis=1))]) for rows in (train, test)
    )
    radius = np.sort(euclidean_distances(train), axis=1)[:, 10]  # the first is the image itself
    expected = np.sort(euclidean_distances(test, train) / np.maximum(radius, 0.1 * np.median(radius)), axis=1)[:, 4]
    found = session(exported.model).run(["ood"], {"image": pixels_of(exported)[1]})[0]
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_the_ood_threshold_is_the_95th_percentile_of_the_validation_images(exported: Any) -> None:
    threshold = ModelMetadata.from_props(
        session(exported.model).get_modelmeta().custom_metadata_map, exported.model
    ).ood_threshold
    found = session(exported.model).run(["ood"], {"image": pixels_of(exported, "valid")[1]})[0]
    assert threshold == pytest.approx(np.quantile(found, 0.95), rel=1e-3)


def test_kinds_of_images_in_the_certificate_are_scored_by_the_model(exported: Any) -> None:
    """The network of this run has random weights, so nothing is asked of the other kinds."""
    stored = json.loads(exported.certificate.read_text())["out_of_distribution"]
    model = session(exported.model)
    train = model.run(["ood"], {"image": pixels_of(exported, "train")[1]})[0]
    threshold = json.loads(exported.certificate.read_text())["metadata"]["ood_threshold"]
    assert list(stored) == [kind for kind, _ in made_kinds(pixels_of(exported)[1])]
    for kind, images in made_kinds(pixels_of(exported)[1]):
        scores = model.run(["ood"], {"image": np.ascontiguousarray(images)})[0]
        assert stored[kind] == {"images": len(images), "above": np.mean(scores > threshold)}
        if kind == "noise":
            assert scores.min() > max(train.max(), threshold)


def test_each_model_is_one_file_that_can_be_moved_alone(exported: Any, tmp_path: Path) -> None:
    for file in (exported.model, exported.core):
        moved = Path(shutil.copy(file, tmp_path))
        session(moved)
        assert not any(tensor.external_data for tensor in onnx.load(moved, load_external_data=False).graph.initializer)


def test_both_models_are_opset_18_and_nothing_but_standard_operators(exported: Any) -> None:
    for file in (exported.model, exported.core):
        model = onnx.load(file)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
        onnx.checker.check_model(model, full_check=True)


def test_the_core_model_has_plain_operators_and_no_batchnorm(exported: Any) -> None:
    kinds = {node.op_type for node in onnx.load(exported.core).graph.node}
    assert kinds <= {"Conv", "Clip", "Add", "Sub", "Mul", "Div", "ReduceMean", "Gemm", "Relu", "Softmax"}


def test_no_local_path_and_no_stack_trace_is_in_the_bytes(exported: Any) -> None:
    for file in (exported.model, exported.core):
        content = file.read_bytes()
        for trace in (str(exported.folder), "site-packages", ".py", "/tmp", "Traceback"):
            assert trace.encode() not in content


def test_the_core_model_is_no_larger_than_its_weights(exported: Any) -> None:
    backbone = (exported.folder / "weights.pth").stat().st_size
    head = (exported.folder / "runs" / "first" / "head.safetensors").stat().st_size
    assert exported.core.stat().st_size < backbone + head


@pytest.mark.slow
def test_a_second_export_gives_the_same_bytes(exported: Any, tmp_path: Path) -> None:
    export_run(exported.run, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == exported.model.read_bytes()
    assert (tmp_path / "again.core.onnx").read_bytes() == exported.core.read_bytes()


def test_the_metadata_are_those_of_the_run(exported: Any) -> None:
    run = exported.run
    for file, variant in ((exported.model, "full"), (exported.core, "core")):
        said = ModelMetadata.from_props(session(file).get_modelmeta().custom_metadata_map, file)
        assert said.variant == variant
        assert said.class_names == run.class_names == ("bar", "disc")
        assert said.feature_spec == run.feature_spec
        assert (said.head_sha256, said.cache_sha256) == (run.head_sha256, run.cache["content_sha256"])
        assert (said.run, said.precision) == ("first", "float32")
        # The page shows intervals by patient, as the report does; those of run.metrics are by image.
        for part, study in run.statistics.items():
            by_patient = plain_accuracy(study)["interval"]
            assert said.metrics[part] == {**run.metrics[part], "accuracy_interval": by_patient}


def test_the_certificate_has_the_files_the_checks_and_the_timings(exported: Any) -> None:
    certificate = json.loads(exported.certificate.read_text())
    assert certificate["format"] == "xfeat.certificate"
    assert certificate["schema_version"] == 1
    assert certificate["models"] == {
        "full": {"file": "model.onnx", "sha256": sha256_of(exported.model)},
        "core": {"file": "model.core.onnx", "sha256": sha256_of(exported.core)},
    }
    checks = certificate["against_torch"]["CPUExecutionProvider"]
    assert set(checks) == {"full", "resized_inside", "core"}
    for check in checks.values():
        assert check["images"] == 12
        assert 0 <= check["mean_difference"] <= check["max_difference"] <= check["tolerance"]
        assert check["changed_decisions"] == 0
    assert certificate["against_training"]["max_difference"] <= 1e-4
    assert set(certificate["milliseconds_an_image"]) == {
        "torch",
        "CPUExecutionProvider full",
        "CPUExecutionProvider core",
    }
    assert str(exported.folder) not in exported.certificate.read_text()


def test_the_reference_predictions_in_the_certificate_are_those_of_torch(exported: Any) -> None:
    reference = json.loads(exported.certificate.read_text())["reference"]
    paths, _ = pixels_of(exported)
    assert [row["path"] for row in reference] == paths
    assert [row["sha256"] for row in reference] == [sha256_of(exported.data / path) for path in paths]
    np.testing.assert_allclose([row["probabilities"] for row in reference], recorded(exported), atol=1e-5)


@pytest.mark.slow
def test_the_model_has_the_temperature_and_operating_point_of_the_run(
    copied: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """predictions.csv is rewritten with numpy for a temperature of 2 and a threshold of 0.7."""
    _, pixels = pixels_of(copied)
    logits = session(copied.model).run(["logits"], {"image": pixels})[0].astype(np.float64)
    expected = np.exp(logits / 2) / np.exp(logits / 2).sum(1, keepdims=True)
    facts = json.loads((copied.run.folder / "run.json").read_text())
    facts |= {"temperature": 2.0, "operating_point": {"positive": "disc", "threshold": 0.7}}
    (copied.run.folder / "run.json").write_text(json.dumps(facts))
    rows = copied.run.predictions()
    test_rows = iter(expected.tolist())
    lines = [",".join(rows[0])]
    for row in rows:
        if row["split"] == "test":
            row["p_bar"], row["p_disc"] = map(str, next(test_rows))
        lines.append(",".join(row.values()))
    (copied.run.folder / "predictions.csv").write_text("\n".join(lines) + "\n")
    export_run(copied.run, copied.model)
    found = session(copied.model)
    np.testing.assert_allclose(found.run(["probabilities"], {"image": pixels})[0], expected, atol=1e-5)
    said = ModelMetadata.from_props(found.get_modelmeta().custom_metadata_map, copied.model)
    assert (said.temperature, said.positive, said.threshold) == (2.0, "disc", 0.7)


def test_what_to_expect_of_other_sources_is_said_only_if_it_was_measured(exported: Any) -> None:
    figure = {"value": 0.8, "interval": [0.7, 0.9]}
    found = {
        "column": "hospital",
        "unanswerable": "",
        "same_as_class": [],
        "overall": {"auc": {"ordinary": figure, "elsewhere": figure, "drop": figure}},
    }
    for crossval, expected in ((None, None), ({"elsewhere": None}, None), ({"elsewhere": found}, "hospital")):
        metadata = metadata_of(replace(exported.run, crossval=crossval), None)
        assert ("elsewhere" in metadata.to_dict()) == (expected is not None)
        assert ModelMetadata.from_dict(metadata.to_dict()) == metadata
        assert expected is None or (metadata.elsewhere or "").startswith("elsewhere: expect AUC")


@pytest.mark.usefixtures("quick_trace")
def test_each_model_predicts_all_check_images_once_per_export(
    exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[tuple[str, int]] = []

    def counted(model: ModelFile, pixels: np.ndarray, *rest: Any, **more: Any) -> np.ndarray:
        runs.append((model.metadata.variant, len(pixels)))
        return onnx_probabilities(model, pixels, *rest, **more)

    monkeypatch.setattr("xfeat.export.export.onnx_probabilities", counted)
    monkeypatch.setattr("xfeat.export.parity.checks.onnx_probabilities", counted)
    export_run(exported.run, tmp_path / "m.onnx")
    assert [variant for variant, images in runs if images == 12] == ["full", "core"]


def test_the_command_prints_one_json_object_with_what_was_checked(
    xexport: Xexport, copied: Any, quick_trace: None, tmp_path: Path
) -> None:
    done = xexport("onnx", copied.run.folder, "-o", tmp_path / "new" / "m.onnx", "--json")
    assert done.exit_code == 0
    said = json.loads(done.stdout)
    assert set(said) == {
        "run",
        "model",
        "core_model",
        "certificate",
        "against_torch",
        "against_training",
        "missing_heatmap",
        "ood_threshold",
    }
    assert Path(said["model"]).is_file()
    assert Path(said["core_model"]).name == "m.core.onnx"
    assert json.loads(Path(said["certificate"]).read_text())["against_torch"] == said["against_torch"]


def test_an_output_that_is_not_an_onnx_file_name_is_refused(exported: Any, tmp_path: Path) -> None:
    for target in (tmp_path, tmp_path / "model.txt"):
        with pytest.raises(OutputError, match="not a file name for a model"):
            export_run(exported.run, target)
