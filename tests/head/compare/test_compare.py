"""Runs side by side, as a library and as a command."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tests.edited_runs import edit_run
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.errors import CacheError, MismatchError, RunError
from xfeat.head.cli import main
from xfeat.head.compare.baselines import PENALTIES, fit_baselines
from xfeat.head.compare.comparison import as_entries, common_part, compare_entries, find_runs
from xfeat.head.compare.page import MAX_CURVES, render_comparison
from xfeat.head.compare.table import comparison_lines, notes
from xfeat.head.evaluation.clustered import proportion_of
from xfeat.head.evaluation.intervals import wilson_interval
from xfeat.head.runs.reader import Run, open_run, read_history
from xfeat.head.specs import LOGISTIC, SORTS, SVM, HeadSpec, TrainSpec
from xfeat.head.train import TrainOptions, train_run

WriteClouds = Callable[..., FeatureCache]


def train(cache: FeatureCache, runs: Path, name: str, hidden: tuple[int, ...] = (8,), **settings: float) -> Run:
    spec = TrainSpec(**{"epochs": 2, "lr": 1e-2, **settings})  # type: ignore[arg-type]
    return train_run(cache, HeadSpec(hidden=hidden), spec, runs=runs, name=name)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, write_clouds: WriteClouds) -> Path:
    """Three runs of which two do well and one, hardly trained at a tiny rate, does not; and their cache."""
    folder = tmp_path_factory.mktemp("made").resolve()
    cache = write_clouds(folder / "features.h5", patients=True)
    train(cache, folder / "runs", "good", epochs=8)
    train(cache, folder / "runs", "linear", hidden=(), epochs=8)
    train(cache, folder / "runs", "poor", lr=1e-7)
    return folder


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    """A copy of them, whose cache is a copy too."""
    folder = tmp_path.resolve()
    shutil.copytree(made, folder, dirs_exist_ok=True, symlinks=True)
    for file in folder.glob("runs/*/run.json"):
        facts = json.loads(file.read_text())
        edit_run(file.parent, cache={**facts["cache"], "written_in": ""})  # so that the first cache is not found
    return folder / "runs"


def test_only_differing_settings_are_shown_and_the_best_run_is_first(runs: Path) -> None:
    found = find_runs(runs)
    assert [run.name for run in found] == ["good", "linear", "poor"]  # not ``latest``
    comparison = compare_entries(as_entries(found), "test")
    assert comparison.differing == ["hidden", "epochs", "lr"]
    accuracies = [entry.metrics["test"]["accuracy"] for entry in comparison.entries]
    assert accuracies == sorted(accuracies, reverse=True)
    assert comparison.entries[-1].name == "poor"
    assert comparison.entries[0].difference is None
    last = comparison.entries[-1].difference
    assert last is not None
    assert last.verdict == "larger than chance"
    assert last.interval is not None
    assert last.accuracy == pytest.approx(accuracies[-1] - accuracies[0])


@pytest.mark.parametrize("sort", SORTS)
def test_every_metric_sorts_the_best_first(runs: Path, sort: str) -> None:
    entries = compare_entries(as_entries(find_runs(runs)), "test", sort=sort).entries
    if sort == "name":
        assert [entry.name for entry in entries] == ["good", "linear", "poor"]
    else:
        figures = [entry.metrics["test"][sort] for entry in entries]
        assert figures == sorted(figures, reverse=sort != "loss")


def test_runs_of_other_images_are_listed_but_not_compared(write_clouds: WriteClouds, tmp_path: Path) -> None:
    train(write_clouds(tmp_path / "features.h5"), tmp_path / "runs", "a", epochs=8)
    train(write_clouds(tmp_path / "other.h5", test=False), tmp_path / "runs", "b", lr=1e-7)
    found = find_runs(tmp_path / "runs")
    assert common_part(found) == "valid"
    [a, b] = as_entries(found)
    assert compare_entries([a, b], "valid").entries[1].difference.verdict != "not comparable"  # type: ignore[union-attr]
    [a] = as_entries(found[:1])
    [_, other] = compare_entries([a, b], "valid").entries
    assert other.difference is not None
    assert other.difference.verdict == "not comparable"
    assert "cache" in compare_entries([a, b], "valid").differing


def test_a_damaged_run_is_left_out_with_a_warning(runs: Path, caplog: pytest.LogCaptureFixture) -> None:
    (runs / "poor" / "run.json").write_text("{")
    assert [run.name for run in find_runs(runs)] == ["good", "linear"]
    assert "left out" in caplog.text
    assert "poor" in caplog.text


def test_damaged_predictions_and_histories_are_named(runs: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = find_runs(runs)
    (runs / "good" / "history.csv").write_text("epoch,train_loss\n1,fast\n")
    with pytest.raises(RunError, match=r"history\.csv"):
        read_history(found[0])
    assert render_comparison(compare_entries(as_entries(found), "test")).count("<svg") == 5
    assert re.search(r"not drawn: .*history\.csv", caplog.text)
    (runs / "good" / "predictions.csv").write_text("path,split,label\na,test,covid\n")
    assert as_entries(found)[0].problem.startswith("damaged predictions")
    assert re.search(r"not compared: .*predictions\.csv.*no column prediction, p_", caplog.text, re.DOTALL)


@pytest.mark.parametrize("sort", SORTS)
def test_a_run_without_predictions_is_listed_last_and_the_others_are_compared(runs: Path, sort: str) -> None:
    (runs / "good" / "predictions.csv").unlink()
    command = ["compare", "--runs", str(runs), "--sort", sort, "--baselines", "--html", str(runs / "c.html")]
    outcome = CliRunner().invoke(main, command)
    assert outcome.exit_code == 0, outcome.output
    table = [line for line in outcome.stdout.splitlines() if re.match(r"good|linear |poor|SVM|logistic", line)]
    assert len(table) == 5
    assert table[-1].startswith("good")
    assert table[-1].endswith("not comparable: the predictions are missing")
    assert sum("than chance" in line or "may be chance" in line for line in table) == 3
    assert re.search(r"not compared: .*predictions\.csv", outcome.stderr)


def test_baselines_need_one_run_with_predictions(runs: Path) -> None:
    for file in runs.glob("*/predictions.csv"):
        file.unlink()
    listed = CliRunner().invoke(main, ["compare", "--runs", str(runs), "--json"])
    assert {entry["against_first"]["problem"] for entry in json.loads(listed.stdout)["entries"]} == {
        "the predictions are missing"
    }
    refused = CliRunner().invoke(main, ["compare", "--runs", str(runs), "--baselines"])
    assert refused.exit_code == 1
    assert "no run has readable predictions" in refused.stderr


def test_without_the_cache_patients_are_unknown_and_mcnemar_remains(runs: Path) -> None:
    found = find_runs(runs)
    Path(found[0].cache["path"]).unlink()
    for entry in compare_entries(as_entries(found), "test").entries[1:]:
        assert entry.difference is not None
        assert entry.difference.interval is None
        assert not entry.difference.problem
    with pytest.raises(CacheError):
        fit_baselines(as_entries(found[:1]), "test")


def test_baselines_are_scikit_learns_classifiers_on_the_same_images(write_clouds: WriteClouds, runs: Path) -> None:
    run = find_runs(runs)[0]
    cache = FeatureCache.open(run.cache["path"])
    labels, features = cache.columns.label, np.asarray(cache.features)
    models = [
        make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=2000)).fit(features[:90], labels[:90])
        for penalty in PENALTIES
    ]
    best = max(models, key=lambda model: model.score(features[90:120], labels[90:120]))
    decided = best.predict(features[120:])
    entries = {entry.name: entry for entry in fit_baselines(as_entries([run]), "test")}
    assert set(entries) == {LOGISTIC, SVM}
    figures = entries[LOGISTIC].metrics["test"]
    assert figures["accuracy"] == pytest.approx((decided == labels[120:]).mean())
    assert figures["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels[120:], decided))
    truth, truth_of_run = (
        {path: label for path, (label, _) in entry.predictions.items()}
        for entry in (entries[LOGISTIC], *as_entries([run]))
    )
    assert truth == truth_of_run
    write_clouds(Path(run.cache["path"]), seed=5)  # the same file, other features
    with pytest.raises(MismatchError):
        fit_baselines(as_entries([run]), "test")


def test_the_command_writes_text_json_csv_and_a_page(runs: Path, tmp_path: Path) -> None:
    outcome = CliRunner().invoke(main, ["compare", "--runs", str(runs), "--baselines"])
    assert outcome.exit_code == 0, outcome.output
    table = [line for line in outcome.stdout.splitlines() if re.match(r"good|linear |poor|SVM|logistic", line)]
    assert len(table) == 5
    assert "larger than chance" in outcome.stdout
    assert "\x1b" not in outcome.stdout
    page, sheet = tmp_path / "c.html", tmp_path / "c.csv"
    command = ["compare", "good", "poor", "--runs", str(runs), "--json", "--csv", str(sheet), "--html", str(page)]
    outcome = CliRunner().invoke(main, command)
    assert outcome.exit_code == 0, outcome.output
    result = json.loads(outcome.stdout)
    assert [entry["name"] for entry in result["entries"]] == ["good", "poor"]
    assert result["entries"][1]["against_first"]["verdict"] == "larger than chance"
    with sheet.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["test_accuracy"]) == result["entries"][0]["metrics"]["test"]["accuracy"]
    assert rows[1]["verdict"] == "larger than chance"
    text = page.read_text(encoding="utf-8")
    assert text.count("<svg") == 5
    assert "good" in text
    assert "http://" not in re.sub(r"http://www\.w3\.org\S*|http://purl\.org\S*|http://creativecommons\S*", "", text)


def test_all_accuracies_have_an_interval_by_patient(runs: Path) -> None:
    """Reference: the run's own statistics; of a baseline, the influence of each patient, from its predictions."""
    run = open_run(runs / "good")
    entries = [*as_entries([run]), *fit_baselines(as_entries([run]), "test")]
    columns = FeatureCache.open(runs.parent / "features.h5").columns
    groups = dict(zip(columns.path, columns.group, strict=True))
    assert entries[0].metrics["test"]["accuracy_interval"] == run.statistics["test"]["accuracy"]["interval"]
    for entry in entries:
        patients = np.unique([groups[path] for path in entry.predictions], return_inverse=True)[1]
        right = np.array([label == predicted for label, predicted in entry.predictions.values()])
        by_patient = proportion_of(right, np.ones(len(right), bool), patients)
        assert entry.metrics["test"]["accuracy_interval"] == pytest.approx(by_patient.to_dict()["interval"])
        assert entry.metrics["test"]["accuracy_interval"] != wilson_interval(int(right.sum()), len(right))


def test_runs_are_compared_with_the_first_run_even_if_a_baseline_is_better(runs: Path) -> None:
    """The only run does badly, so that both baselines come before it."""
    [poor] = [run for run in find_runs(runs) if run.name == "poor"]
    comparison = compare_entries([*as_entries([poor]), *fit_baselines(as_entries([poor]), "test")], "test")
    *better, last = comparison.entries
    assert last.difference is None
    assert last.run == poor
    assert len(better) == 2
    for entry in better:
        assert entry.difference is not None
        gain = entry.metrics["test"]["accuracy"] - poor.metrics["test"]["accuracy"]
        assert entry.difference.accuracy == pytest.approx(gain)
        assert gain > 0


@pytest.mark.parametrize("option", ["--csv", "--html"])
def test_a_file_that_cannot_be_written_is_one_message_with_its_option(runs: Path, tmp_path: Path, option: str) -> None:
    (tmp_path / "file").write_text("")
    outcome = CliRunner().invoke(main, ["compare", "--runs", str(runs), option, str(tmp_path / "file" / "out")])
    assert outcome.exit_code == 1
    assert f"choose another place with {option}" in outcome.stderr


def test_the_page_escapes_names_and_draws_no_more_runs_than_it_has_colours(runs: Path) -> None:
    names = ["<b>bold</b>", *(f"run{number}" for number in range(MAX_CURVES))]
    entries = as_entries(find_runs(runs)[:1])
    many = [type(entries[0])(**{**vars(entries[0]), "name": name}) for name in names]
    page = render_comparison(compare_entries(many, "test", sort="name"))
    assert "<b>bold" not in page
    assert "1 more" in page.replace("\xa0", " ")


@pytest.mark.parametrize(
    ("change", "title", "roc"),
    [
        ({}, "3 classes: covid, normal, pneumonia, 30 test images, 10 patients, 2 classifiers compared", "mean over 3"),
        ({"predictions": {}, "problem": "missing"}, "2 classifiers compared", "no run has its predictions"),
        ({"classes": ("flu", "normal", "pneumonia")}, "2 classifiers compared", "the runs have different classes"),
    ],
)
def test_the_page_says_what_is_compared_and_what_its_roc_curves_are(
    runs: Path, change: dict[str, Any], title: str, roc: str
) -> None:
    first, second = as_entries(find_runs(runs)[:2])
    if "classes" in change:
        assert second.run is not None
        statistics = {"run": replace(second.run, class_names=change["classes"], statistics={}, operating_point=None)}
        entries = [first, replace(second, **statistics)]
    else:
        entries = [replace(entry, **change) for entry in (first, second)]
    page = render_comparison(compare_entries(entries, "test")).replace("\xa0", " ")
    assert f"<h1>{title}</h1>" in page
    assert roc in page
    assert ("ROC curve of each run" in page) == (not change)
    assert f"difference from {first.name}, points" in page


def test_runs_that_are_not_there_are_one_message(runs: Path, tmp_path: Path) -> None:
    for arguments in (["nowhere"], ["--runs", str(tmp_path / "empty")]):
        outcome = CliRunner().invoke(main, ["compare", *arguments])
        assert outcome.exit_code == 1
        assert outcome.stderr.startswith("error: ")
        assert "fix:" in outcome.stderr


@pytest.mark.parametrize(("width", "hidden"), [(100, 5), (120, 3), (250, 0)])
def test_a_table_fits_the_terminal_and_truncates_nothing(
    runs: Path, monkeypatch: pytest.MonkeyPatch, width: int, hidden: int
) -> None:
    entries = as_entries(find_runs(runs))
    comparison = compare_entries([replace(entry, name=f"a-long-name-for-{entry.name}") for entry in entries], "test")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    text = comparison_lines(comparison)
    words = " ".join(text[:5]).split()
    assert max(map(len, text[:5])) <= width
    assert {f"{100 * entry.metrics['test']['accuracy']:.1f}" for entry in entries} < set(words)
    assert {"chance", "a-long-name-for-good"} < set(words)
    said = [line.partition(": ")[2].partition(";")[0].split(", ") for line in text if line.startswith("columns hidden")]
    assert sum(map(len, said)) == hidden


def test_runs_that_were_tested_on_other_images_are_counted(runs: Path, write_clouds: WriteClouds) -> None:
    other = train(write_clouds(runs.parent / "other.h5", test=False), runs, "other", epochs=8)
    comparison = compare_entries(as_entries([*find_runs(runs)[:2], other]), "valid")
    assert [note for note in notes(comparison) if "cannot be compared" in note] == []  # the same validation images
    comparison = compare_entries([*as_entries(find_runs(runs)[:2]), *as_entries([other])], "valid")
    assert any("cannot be compared with good" in note for note in notes(comparison))


def test_an_ensemble_shows_the_widths_that_were_asked_for(write_clouds: WriteClouds, tmp_path: Path) -> None:
    cache, spec = write_clouds(tmp_path / "features.h5"), TrainSpec(epochs=1)
    run = train_run(cache, HeadSpec(hidden=(8, 4)), spec, runs=tmp_path, options=TrainOptions(members=2))
    assert run.head_spec.hidden == (16, 8)
    [entry] = as_entries([run])
    assert entry.settings["hidden"] == [8, 4]
    assert entry.settings["ensemble"] == 2
