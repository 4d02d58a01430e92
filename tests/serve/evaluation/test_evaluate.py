"""``xserve eval`` on models of this project: the figures are scikit-learn's and those of ``xhead eval``."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import Result
from PIL import Image
from sklearn import metrics as sk

from tests.serve.conftest import CLASSES
from xfeat.export.model.metadata import ModelMetadata

Xserve = Callable[..., Result]
ABSENT = ("torch", "sklearn", "scipy", "onnx", "onnxscript", "h5py", "matplotlib", "fastapi", "starlette", "uvicorn")


def answer(done: Result) -> Any:
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("form", ["folder", "zip", "table"])
def test_the_figures_are_scikit_learns(xserve: Xserve, model: Path, data: Path, tmp_path: Path, form: str) -> None:
    given = data
    if form == "zip":
        given = tmp_path / "data.zip"
        with zipfile.ZipFile(given, "w") as archive:
            for file in data.rglob("*.*"):
                archive.write(file, file.relative_to(data))
    elif form == "table":
        given = shutil.copytree(data, tmp_path / "data") / "images.csv"
        rows = [f"{file.relative_to(data)},{file.parent.name}" for file in data.rglob("*.png")]
        given.write_text("path,label\n" + "\n".join(rows) + "\n")
    said = answer(xserve("eval", model, given, "-o", tmp_path / "p.csv", "--json"))
    rows = table(tmp_path / "p.csv")
    labels = np.array([CLASSES.index(row["label"]) for row in rows])
    p = np.array([[row[f"p_{name}"] for name in CLASSES] for row in rows], float)
    metrics = said["metrics"]
    assert (said["images"], metrics["images"], len(rows)) == (36, 36, 36)
    assert 0.5 < metrics["accuracy"] < 1, "or the comparison says little"
    assert metrics["accuracy"] == sk.accuracy_score(labels, p.argmax(1))
    assert metrics["confusion_matrix"] == sk.confusion_matrix(labels, p.argmax(1)).tolist()
    assert metrics["auc"] == pytest.approx(sk.roc_auc_score(labels, p / p.sum(1, keepdims=True), multi_class="ovr"))
    assert [row["prediction"] for row in rows] == [CLASSES[code] for code in p.argmax(1)]
    assert said["study"]["patients"] == (36 if form == "table" else 12)


def test_the_probabilities_are_those_of_predict(xserve: Xserve, model: Path, data: Path, tmp_path: Path) -> None:
    answer(xserve("eval", model, data, "-o", tmp_path / "p.csv", "--json"))
    predicted = answer(xserve("predict", data, "--model", model, "--json"))["predictions"]
    by_path = {str(data / row["path"]): row for row in table(tmp_path / "p.csv")}
    for each in predicted:
        row = by_path[each["path"]]
        assert row["prediction"] == each["label"]
        assert [np.float32(row[f"p_{name}"]) for name in CLASSES] == [
            np.float32(p) for p in each["probabilities"].values()
        ]


@pytest.mark.parametrize("moved", [None, 0.1, 0.9])
def test_the_threshold_can_be_moved(xserve: Xserve, write_model: Any, data: Path, tmp_path: Path, moved: Any) -> None:
    path, threshold = write_model(positive="covid", threshold=0.4), 0.4 if moved is None else moved
    options = () if moved is None else ("--threshold", moved)
    said = answer(xserve("eval", path, data, "-o", tmp_path / "p.csv", "--json", *options))
    rows = table(tmp_path / "p.csv")
    called = np.array([float(row["p_covid"]) >= threshold for row in rows])
    covid = np.array([row["label"] == "covid" for row in rows])
    studied = said["study"]["classes"]["covid"]
    assert studied["sensitivity"]["value"] == pytest.approx(called[covid].mean())
    assert studied["specificity"]["value"] == pytest.approx((~called[~covid]).mean())
    assert [row["prediction"] == "covid" for row in rows] == called.tolist()
    assert said["threshold"] == pytest.approx(threshold)


def test_a_threshold_for_a_class_that_has_none(xserve: Xserve, model: Path, data: Path) -> None:
    done = xserve("eval", model, data, "--threshold", 0.5)
    assert (done.exit_code, "add --positive CLASS" in done.stderr) == (1, True)
    done = xserve("eval", model, data, "--positive", "covid")
    assert (done.exit_code, "add --threshold" in done.stderr) == (1, True)
    done = xserve("eval", model, data, "--positive", "flu", "--threshold", 0.5)
    assert (done.exit_code, "unknown class" in done.stderr) == (2, True)
    said = answer(xserve("eval", model, data, "--positive", "covid", "--threshold", 0.5, "--json"))
    assert said["positive"] == "covid"


def test_a_threshold_is_rounded_as_in_the_graph(xserve: Xserve, write_model: Any, data: Path, tmp_path: Path) -> None:
    """The nearest float32 of many numbers lies below them: a probability of that value must not reach them."""
    path = write_model(positive="covid", threshold=0.7)
    said = answer(xserve("eval", path, data, "--json"))
    assert said["threshold"] >= 0.7
    about = ModelMetadata.from_props({p.key: p.value for p in onnx.load(path).metadata_props}, path)
    below = float(np.nextafter(np.float32(said["threshold"]), np.float32(0)))
    assert about.decide([below, 1 - below, 0.0]) == "normal"


@pytest.fixture
def spoilt(data: Path, tmp_path: Path) -> Path:
    """The images, a class that the model does not have, images without a class, and one that is no image."""
    folder = shutil.copytree(data, tmp_path / "spoilt")
    (folder / "groups.csv").unlink()
    (folder / "flu").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (40, 40)).save(folder / "flu" / f"{name}.png")
    (folder / "covid" / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * 50)
    return folder


def test_what_is_left_out_is_said(xserve: Xserve, model: Path, spoilt: Path) -> None:
    done = xserve("eval", model, spoilt)
    assert done.exit_code == 0, done.output
    assert "left out, of no class of the model: flu 2" in done.stdout
    assert "skipped covid/damaged.png: PNG cannot be decoded" in done.stderr
    said = answer(xserve("eval", model, spoilt, "--json"))
    assert (said["images"], said["left_out"], len(said["skipped"])) == (36, {"flu": 2}, 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("one class", "no AUC: not every class of the model has images"),
        ("other classes", "none of the images has a class of the model"),
        ("no labels", "none of the images has a class of the model"),
        ("unreadable", "none of the images could be classified"),
        ("nothing", "not found"),
    ],
)
def test_data_that_allow_few_figures(
    xserve: Xserve, model: Path, spoilt: Path, tmp_path: Path, change: str, words: str
) -> None:
    folder, options = tmp_path / "changed", []
    if change == "one class":
        shutil.copytree(spoilt / "normal", folder / "normal")
        shutil.copytree(spoilt / "flu", folder / "flu")
    elif change == "other classes":
        shutil.copytree(spoilt / "flu", folder / "flu")
        shutil.copytree(spoilt / "flu", folder / "cold")
    elif change == "no labels":
        shutil.copytree(spoilt / "normal", folder)
    elif change == "unreadable":
        (folder / "covid").mkdir(parents=True)
        shutil.copy(spoilt / "covid" / "damaged.png", folder / "covid")
        (folder / "normal").mkdir()
        shutil.copy(spoilt / "covid" / "damaged.png", folder / "normal")
    done = xserve("eval", model, folder, *options)
    assert (done.exit_code == 0) == (change == "one class")
    assert words in done.output
    assert "Traceback" not in done.output


def test_probabilities_that_are_no_numbers_are_skipped(xserve: Xserve, tiny: Any, data: Path, tmp_path: Path) -> None:
    proto = tiny.build(tiny.describe())
    [bias] = [weight for weight in proto.graph.initializer if weight.name == "bias"]
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(3, np.nan, np.float32), "bias"))
    onnx.save(proto, tmp_path / "m.onnx")
    done = xserve("eval", tmp_path / "m.onnx", data)
    assert done.exit_code == 1
    assert "the model returned NaN or infinity" in done.stderr


@pytest.mark.slow
def test_the_figures_are_those_of_xhead_eval(exported_with_threshold: Any, tmp_path: Path) -> None:
    """In a process that has neither torch nor scikit-learn, on the images that the run was tested on."""
    from tests.export.conftest import invoke
    from xfeat.head.cli import main as head

    project = exported_with_threshold
    code = (
        f"import sys\nfor name in {ABSENT!r}: sys.modules[name] = None\n"
        "from xfeat.serve.cli import main\nmain(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "eval", project / "model.onnx", project / "data", "--json"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    right = json.loads(invoke(head, "eval", project / "runs" / "first", project / "features.h5", "--json").stdout)
    assert found["images"] == right["images"] == 48
    for name in ("accuracy", "accuracy_interval", "balanced_accuracy", "auc", "confusion_matrix"):
        assert found["metrics"][name] == right["metrics"][name], name
    for name in ("loss", "ece", "brier"):
        assert found["metrics"][name] == pytest.approx(right["metrics"][name], rel=1e-3, abs=1e-5)
    point = right["operating_point"]
    assert found["threshold"] == pytest.approx(point["threshold"])
    for name in ("sensitivity", "specificity", "ppv", "npv"):
        assert found["study"]["classes"]["disc"][name]["value"] == point["external"][name]["value"]


@pytest.fixture(scope="session")
def exported_with_threshold(made_once: Any) -> Path:
    """The drawn project of the export's tests, with a positive class."""
    from tests.export import conftest as project
    from xfeat.export.cli import main as export
    from xfeat.featurize.cli import main as featurize
    from xfeat.head.cli import main as head

    def make(folder: Path) -> None:
        project.random_weights(folder / "weights.pth", project.draw_images(folder / "data", project.COUNTS))
        cache, run = folder / "features.h5", folder / "runs" / "first"
        commands = [
            (featurize, "featurize", folder / "data", "-o", cache, "--backbone", "efficientnet-lite0"),
            (head, "train", "--features", cache, "--runs", folder / "runs", "--name", "first", "--positive", "disc"),
            (export, "onnx", run, "-o", folder / "model.onnx"),
        ]
        extra = ["--weights", folder / "weights.pth", "--size", project.SIDE, "--engine", "torch"]
        for number, (command, *args) in enumerate(commands):
            done = project.invoke(command, *args, *([] if number else extra))
            assert done.exit_code == 0, done.output

    return Path(made_once("with_threshold", make))
