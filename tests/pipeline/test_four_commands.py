"""From a folder of pictures to an answer in four commands, with no option in between, on the drawn phantoms.

The model is that of the README's own run.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from tests.edited_runs import edit_run
from tests.pipeline.conftest import BACKBONE, Shell, as_json, shell_in
from xfeat.export.cli import main as xexport

pytestmark = pytest.mark.slow


class Pipeline(NamedTuple):
    folder: Path
    data: Path
    run: Shell
    exported_run: Path
    featurized: dict[str, Any]
    trained: dict[str, Any]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory, readme_run: Path) -> Pipeline:
    """The folder of the README's commands, and the first two once more as programs call them."""
    folder = tmp_path_factory.mktemp("user") / "copy"
    shutil.copytree(readme_run, folder, symlinks=True)
    data, exported_run = folder / "data", (folder / "runs" / "latest").resolve()
    (data / "train" / "clear" / "broken.jpg").write_text("no picture")
    (folder / "features.h5").unlink()
    run = shell_in(folder)
    featurized = as_json(run("xfeat", "featurize", "data", *BACKBONE, "--json"))
    trained = as_json(run("xhead", "train", "--json"))
    return Pipeline(folder, data, run, exported_run, featurized, trained)


def test_featurize_reports_what_it_did(pipeline: Pipeline) -> None:
    answer = pipeline.featurized
    images = len(list(pipeline.data.glob("t*/*/*.*g"))) + len(list(pipeline.data.glob("valid/*/*.*g")))
    assert answer["output"] == "features.h5"
    assert answer["backbone"] == "efficientnet-lite0"
    assert answer["images"] == answer["computed"] == images - 1
    assert answer["reused"] == 0
    assert answer["skipped"] == 1
    assert answer["skipped_images"][0]["path"] == "train/clear/broken.jpg"
    assert answer["images_per_second"] > 0


def test_a_second_run_computes_nothing_and_leaves_the_file_alone(pipeline: Pipeline) -> None:
    before = (pipeline.folder / "features.h5").stat().st_mtime_ns
    answer = as_json(pipeline.run("xfeat", "featurize", "data", "--json"))
    assert answer["computed"] == 0
    assert answer["reused"] == pipeline.featurized["images"]
    assert answer["backbone"] == "efficientnet-lite0", "auto keeps what the file has"
    assert (pipeline.folder / "features.h5").stat().st_mtime_ns == before


def test_the_phantoms_are_learned_but_not_trivial(pipeline: Pipeline) -> None:
    test = pipeline.trained["metrics"]["test"]
    assert 0.75 <= test["accuracy"] <= 1
    assert test["auc"] >= 0.85
    assert pipeline.trained["classes"] == ["clear", "opacity"]
    assert np.sum(test["confusion_matrix"]) == test["images"]


def test_the_run_folder_is_whole(pipeline: Pipeline) -> None:
    run = pipeline.folder / pipeline.trained["run"]
    assert {"run.json", "head.safetensors", "history.csv", "predictions.csv", "report.html"} <= {
        file.name for file in run.iterdir()
    }
    assert (pipeline.folder / "runs" / "latest").resolve() == run.resolve()
    assert json.loads((run / "run.json").read_text())["metrics"] == pipeline.trained["metrics"]


def test_the_export_is_certified(pipeline: Pipeline) -> None:
    certificate = json.loads((pipeline.folder / "model.certificate.json").read_text())
    for checks in certificate["against_torch"].values():
        assert checks["full"]["max_difference"] < 1e-4
        assert checks["core"]["max_difference"] < 1e-4
        assert all(check["changed_decisions"] == 0 for check in checks.values())
    assert certificate["against_training"]["changed_decisions"] == 0


def test_predict_says_what_the_training_said(pipeline: Pipeline) -> None:
    """Held against predictions.csv, which was written before there was any ONNX file."""
    answer = as_json(pipeline.run("xserve", "predict", "data/test", "--json"))
    assert answer["model"] == "model.onnx"
    assert answer["skipped"] == []
    with (pipeline.exported_run / "predictions.csv").open() as file:
        noted = {row["path"]: row for row in csv.DictReader(file) if row["split"] == "test"}
    assert len(answer["predictions"]) == len(noted) > 0
    for prediction in answer["predictions"]:
        row = noted[Path(prediction["path"]).relative_to("data").as_posix()]
        assert prediction["label"] == row["prediction"]
        for name, probability in prediction["probabilities"].items():
            assert probability == pytest.approx(float(row[f"p_{name}"]), abs=1e-4)


def test_info_and_verify_read_the_cache(pipeline: Pipeline) -> None:
    info = as_json(pipeline.run("xfeat", "info", "--json"))
    assert info["images"] == pipeline.featurized["images"]
    assert set(info["counts"]) == {"train", "valid", "test"}
    assert as_json(pipeline.run("xfeat", "verify", "--json"))["ok"] is True
    with h5py.File(pipeline.folder / "features.h5") as file:
        assert file["features"].chunks is None
        assert np.isfinite(file["features"][()]).all()


def test_a_cache_of_another_kind_is_refused_by_the_export(pipeline: Pipeline, tmp_path: Path) -> None:
    shutil.copytree(pipeline.folder / "runs", tmp_path / "runs", symlinks=True)
    facts_file = (tmp_path / "runs" / "latest").resolve() / "run.json"
    facts = json.loads(facts_file.read_text())
    facts["feature_spec"]["preprocess"]["size"] = 192
    edit_run(facts_file.parent, feature_spec=facts["feature_spec"])
    command = ["onnx", str(tmp_path / "runs" / "latest"), "-o", str(tmp_path / "m.onnx")]
    done = CliRunner().invoke(xexport, command)
    assert done.exit_code == 1
    assert "recomputed with other settings" in done.stderr
    assert "fix:" in done.stderr
    assert not (tmp_path / "m.onnx").exists()
