"""Cross-validations and external tests among the things that are compared, also where there is no run."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.errors import RunError
from xfeat.head.cli import main
from xfeat.head.compare.results import compared_results, find_results, open_result
from xfeat.head.compare.significance import mcnemar
from xfeat.head.crossval.report import save_crossval
from xfeat.head.crossval.runner import cross_validate
from xfeat.head.evaluate import evaluate_run
from xfeat.head.reports.eval_report import save_evaluation
from xfeat.head.runs.writer import RunWriter
from xfeat.head.specs import CrossvalSpec, HeadSpec, TrainSpec
from xfeat.head.train import train_run

WriteClouds = Callable[..., FeatureCache]
pytestmark = pytest.mark.slow
AUDIT: dict[str, Any] = {"audited": True, "passed": True, "failures": [], "warnings": []}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, write_clouds: WriteClouds) -> Path:
    """Two cross-validations, of which one learns nothing, and two external tests of a run that is elsewhere."""
    folder = tmp_path_factory.mktemp("results").resolve()
    cache = write_clouds(folder / "features.h5", patients=True)
    other = write_clouds(folder / "other.h5", seed=5, patients=True)
    for name, lr in (("cv-good", 1e-2), ("cv-poor", 1e-7)):
        spec, plan = TrainSpec(epochs=6, lr=lr), CrossvalSpec(folds=3, seeds=2, by_image=False)
        with RunWriter(folder / "only", name, latest=False) as writer:
            save_crossval(writer, cross_validate(cache, HeadSpec(hidden=()), spec, plan), AUDIT)
    for name, lr in (("good", 1e-2), ("poor", 1e-7)):
        run = train_run(cache, HeadSpec(hidden=()), TrainSpec(epochs=6, lr=lr), runs=folder / "runs", name=name)
        save_evaluation(evaluate_run(run, other), folder / "only", f"eval-{name}")
    return folder


def test_each_is_compared_with_the_best_of_its_kind(results: Path) -> None:
    """Reference: predictions.csv of the external tests, counted line by line."""
    found = compared_results(find_results(results / "only"))
    assert [each.name for each in found] == ["cv-good", "cv-poor", "eval-good", "eval-poor"]
    assert [each.difference is None for each in found] == [True, False, True, False]
    right = {}
    for name in ("eval-good", "eval-poor"):
        with (results / "only" / name / "predictions.csv").open(newline="") as file:
            right[name] = np.array([row["prediction"] == row["label"] for row in csv.DictReader(file)])
    difference = found[3].difference
    assert difference is not None
    assert difference.accuracy == pytest.approx(right["eval-poor"].mean() - right["eval-good"].mean())
    gains = [int((right[a] & ~right[b]).sum()) for a, b in (("eval-poor", "eval-good"), ("eval-good", "eval-poor"))]
    assert difference.p == mcnemar(*gains)
    assert difference.interval is not None
    assert found[1].difference is not None
    assert found[1].difference.images == 150


def test_the_command_works_in_a_folder_without_runs(results: Path, tmp_path: Path) -> None:
    sheet, page = tmp_path / "c.csv", tmp_path / "c.html"
    command = ["compare", "--runs", str(results / "only"), "--csv", str(sheet), "--html", str(page)]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert "cv-poor: cross-validated accuracy" in done.stdout
    assert "eval-poor: run poor on" in done.stdout
    answer = json.loads(CliRunner().invoke(main, [*command, "--json"]).stdout)
    assert answer["entries"] == []
    assert [each["name"] for each in answer["crossvals"]] == ["cv-good", "cv-poor"]
    assert set(answer["crossvals"][0]["accuracy"]) >= {"mean", "std", "interval"}
    assert [each["run"] for each in answer["evals"]] == ["good", "poor"]
    with sheet.open(newline="") as file:
        assert [row["tested_on"] for row in csv.DictReader(file)] == ["out of fold"] * 2 + ["external"] * 2
    assert "eval-poor" in page.read_text()


def test_runs_and_results_may_be_named_together(results: Path) -> None:
    named = [str(results / "runs" / "good"), str(results / "only" / "cv-good"), str(results / "only" / "eval-good")]
    answer = json.loads(CliRunner().invoke(main, ["compare", *named, "--json"]).stdout)
    assert [entry["name"] for entry in answer["entries"]] == ["good"]
    assert len(answer["crossvals"]) == len(answer["evals"]) == 1


def test_a_changed_result_is_refused_by_name_and_left_out_otherwise(
    results: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import shutil

    folder = Path(shutil.copytree(results / "only", tmp_path / "only"))
    table = folder / "eval-good" / "predictions.csv"
    table.write_text(table.read_text() + "\n")
    with pytest.raises(RunError, match="not what was saved"):
        open_result(folder / "eval-good")
    assert [each.name for each in find_results(folder)] == ["cv-good", "cv-poor", "eval-poor"]
    assert "left out" in caplog.text
