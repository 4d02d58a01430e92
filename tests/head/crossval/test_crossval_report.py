"""The folder of a cross-validation, and its page: its figures on it, nothing fetched, nothing executed."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from tests.head.conftest import MakeCache
from tests.head.crossval.crossvalidated import HEAD, SHORT, TRAIN, patients, untrainable
from tests.head.reports.test_report import NASTY, Page
from xfeat.featurize.audit.stored import audit_path
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.errors import RunError
from xfeat.head.cli import main
from xfeat.head.compare.comparison import find_runs
from xfeat.head.crossval.report import CROSSVAL_FILE, save_crossval
from xfeat.head.crossval.runner import cross_validate
from xfeat.head.runs.reader import latest_run
from xfeat.head.runs.writer import RunWriter
from xfeat.head.specs import CrossvalSpec, HeadSpec, TrainSpec
from xfeat.head.train import train_run

Draw = Callable[[FeatureCache], FeatureCache]
UNAUDITED: dict[str, Any] = {"audited": False, "passed": None, "failures": [], "warnings": ["one warning"]}


def written(cache: FeatureCache, tmp_path: Path, audit: dict[str, Any] | None = None, **plan: int) -> tuple[Any, str]:
    """Cross-validate and write the folder; return crossval.json as it was read back, and the page."""
    result = cross_validate(cache, HEAD, TRAIN, CrossvalSpec(folds=3, **plan))
    with RunWriter(tmp_path / "runs", "cv", latest=False) as writer:
        facts = save_crossval(writer, result, audit or UNAUDITED)
    read = json.loads((writer.target / CROSSVAL_FILE).read_text())
    assert read == json.loads(json.dumps(facts))
    return read, (writer.target / "report.html").read_text()


def test_the_metrics_are_on_the_page(make_cache: MakeCache, tmp_path: Path) -> None:
    groups, labels = patients(30, 3)
    cache = make_cache(sizes=(90,), groups=groups, labels=labels, separation=0.2)
    facts, text = written(cache, tmp_path, seeds=2)
    words = " ".join(Page(text).words)
    for accuracy in (facts["accuracy"], facts["by_image"]["accuracy"]):
        low, high = accuracy["interval"]
        assert f"{100 * accuracy['mean']:.1f} %" in words
        assert f"{100 * low:.1f} to {100 * high:.1f} %" in words
    difference = f"{100 * (facts['by_image']['accuracy']['mean'] - facts['accuracy']['mean']):+.1f}"
    assert difference.replace("-", "−") in words
    assert f"{100 * facts['metrics']['auc']:.1f} %" in words
    assert facts["feature_fingerprint"] in words
    assert "covid against normal, 90 images, 30 patients, 3 folds" in words
    assert len(Page(text).of("svg")) == 6


def test_each_fold_counts_what_a_loop_counts(make_cache: MakeCache, tmp_path: Path) -> None:
    """Reference: predictions.csv of the same folder, counted line by line."""
    groups, labels = patients(30, 3)
    facts, _ = written(make_cache(sizes=(90,), groups=groups, labels=labels, separation=0.2), tmp_path, seeds=2)
    with (tmp_path / "runs" / "cv" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 180
    assert len(facts["each_fold"]) == 6
    for fold in facts["each_fold"]:
        mine = [row for row in rows if (int(row["seed"]), int(row["fold"])) == (fold["seed"], fold["fold"])]
        assert fold["images"] == len(mine)
        assert fold["groups"] == len({row["group"] for row in mine})
        assert fold["classes"] == {name: sum(row["label"] == name for row in mine) for name in facts["classes"]}
        assert fold["wrong"] == sum(row["label"] != row["prediction"] for row in mine)
    assert [fold["accuracy"] for fold in facts["each_fold"]] == pytest.approx(facts["accuracy"]["folds"])


def test_the_worst_mistakes_have_pictures(make_cache: MakeCache, tmp_path: Path, draw_images: Draw) -> None:
    """Reference: the mean of the log-probabilities in predictions.csv over the seeds."""
    cache = make_cache(sizes=(60,), separation=0.0)
    cache = draw_images(cache)
    _, text = written(cache, tmp_path, seeds=2)
    with (tmp_path / "runs" / "cv" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    truth = {row["path"]: row["label"] for row in rows}
    mean = {}
    for path, name in truth.items():
        own = np.array([float(row[f"p_{name}"]) for row in rows if row["path"] == path])
        mean[path] = 1 / (1 + np.exp(np.mean(np.log(1 - own) - np.log(own))))
    wrong = [path for path in truth if mean[path] < 0.5]
    pictures = Page(text).of("img")
    assert pictures[0]["alt"] == min(wrong, key=lambda path: mean[path])
    assert len(pictures) == min(12, len(wrong))
    assert all(str(image["src"]).startswith("data:image/jpeg;base64,") for image in pictures)
    assert f"{len(wrong)} of 60 images are misclassified by the mean over the seeds" in " ".join(Page(text).words)


def test_the_audit_and_missing_groups_are_on_top(make_cache: MakeCache, tmp_path: Path) -> None:
    failed = {"audited": True, "passed": False, "failures": ["copies in two parts"], "warnings": []}
    _, text = written(make_cache(sizes=(60,)), tmp_path, failed)
    assert text.index("copies in two parts") < text.index("main figures")
    assert "The images have no groups" in text


def test_names_are_escaped_and_nothing_is_fetched(make_cache: MakeCache, tmp_path: Path) -> None:
    cache = make_cache(classes=NASTY, sizes=(120,), separation=0.5)
    cache.columns.path[:] = [f"covid/<img src=x onerror=alert(1)>{row}.png" for row in range(len(cache))]  # type: ignore[index]
    page = Page(written(cache, tmp_path)[1])
    assert len(page.of("html")) == 1
    assert not page.of("script") + page.of("link") + page.of("img")
    assert all(f"sensitivity, {name}" in " ".join(page.words) for name in NASTY)


@pytest.mark.slow
def test_the_command_writes_a_folder_that_is_not_a_run(make_cache: MakeCache, tmp_path: Path) -> None:
    cache = make_cache(sizes=(60,))
    audit_path(cache.path).write_text(
        json.dumps(
            {
                "format": "xfeat.audit",
                "schema_version": 1,
                "cache_sha256": cache.content_sha256,
                "passed": False,
                "failures": ["a shortcut"],
            }
        )
    )
    runs = tmp_path / "runs"
    arguments = [*SHORT, "--features", str(cache.path), "--runs", str(runs)]
    done = CliRunner().invoke(main, [*arguments, "--name", "cv", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told.pop("crossval") == str(runs / "cv")
    assert told == json.loads((runs / "cv" / CROSSVAL_FILE).read_text())
    assert {file.name for file in (runs / "cv").iterdir()} == {CROSSVAL_FILE, "predictions.csv", "report.html"}
    assert "a shortcut" in (runs / "cv" / "report.html").read_text()
    with pytest.raises(RunError, match="no training run"):
        latest_run(runs)
    train_run(make_cache("divided.h5"), HeadSpec(hidden=()), TrainSpec(epochs=1), runs=runs, name="a")
    assert [run.name for run in find_runs(runs)] == ["a"]
    assert latest_run(runs) == (runs / "a").resolve()


def test_a_name_that_is_taken_is_refused_before_anything_is_trained(
    make_cache: MakeCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, runs = make_cache(sizes=(60,)), tmp_path / "runs"
    (runs / "cv").mkdir(parents=True)
    monkeypatch.setattr("xfeat.head.crossval.training.fit_tasks", untrainable)
    done = CliRunner().invoke(main, [*SHORT, "--features", str(cache.path), "--runs", str(runs), "--name", "cv"])
    assert done.exit_code == 1
    assert "a run with this name already exists" in done.stderr
