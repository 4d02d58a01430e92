"""A threshold chosen on all images by cross-validation, or given, and taken by a training."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from tests.head.conftest import MakeCache
from tests.head.crossval.crossvalidated import HEAD, TRAIN
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.errors import MismatchError, RunError, SpecError, XfeatError
from xfeat.head.cli import main
from xfeat.head.crossval.out_of_fold import OutOfFold
from xfeat.head.crossval.report import save_crossval
from xfeat.head.crossval.runner import cross_validate
from xfeat.head.crossval.stored import threshold_from
from xfeat.head.runs.writer import RunWriter
from xfeat.head.specs import CrossvalSpec, HeadSpec, TargetSpec
from xfeat.head.train import TrainOptions, train_run

SHORT = ["--epochs", "4", "--hidden", "linear", "--lr", "0.02"]
COVID = TargetSpec(positive="covid", target_sensitivity=0.9)
TARGET = ["--positive", "covid", "--target-sensitivity", "0.9"]


@pytest.fixture(autouse=True)
def _in_a_fresh_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def xhead(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def answered(*arguments: str) -> dict[str, Any]:
    done = xhead(*arguments, "--json")
    assert done.exit_code == 0, done.stderr
    return dict(json.loads(done.stdout))


def crossval(*more: str) -> dict[str, Any]:
    return answered("crossval", "--folds", "3", "--no-by-image", *SHORT, *TARGET, "--name", "cv", *more)


@pytest.mark.slow
def test_the_threshold_is_chosen_on_all_images_and_its_figures_are_those_of_predictions_csv(
    make_cache: MakeCache,
) -> None:
    """Reference: predictions.csv, counted line by line."""
    make_cache(separation=0.3)
    facts = crossval()
    point = facts["operating_point"]
    with Path("runs/cv/predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    called = [np.float32(row["p_covid"]) >= point["threshold"] for row in rows]
    assert [row["prediction"] for row in rows] == ["covid" if call else "normal" for call in called]
    hits = sum(call for call, row in zip(called, rows, strict=True) if row["label"] == "covid")
    assert point["out_of_fold"]["true_positive"] == hits >= 0.9 * 90
    assert point["out_of_fold"]["false_positive"] == sum(called) - hits
    assert sum(map(sum, facts["confusion_matrix"])) == 180
    assert facts["statistics"]["confusion_matrix"][0][0] == hits
    trained = answered("train", *SHORT, "--threshold-from", "runs/cv")
    assert trained["operating_point"]["threshold"] == point["threshold"]
    assert trained["operating_point"]["out_of_fold"] == point["out_of_fold"]
    with Path(trained["run"], "predictions.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            is_covid = np.float32(row["p_covid"]) >= point["threshold"]
            assert row["prediction"] == ("covid" if is_covid else "normal")
    assert xhead("train", *SHORT, "--threshold-from", "cv", "--name", "by-name").exit_code == 0
    assert xhead("train", *SHORT, "--threshold-from", "runs/cv/crossval.json", "--name", "by-file").exit_code == 0
    page = Path("runs/by-name/report.html").read_text().replace("\xa0", " ")
    assert f"covid if probability ≥ {point['threshold']:.4f}" in page
    assert "cross-validation cv" in page


def saved(cache: FeatureCache, target: TargetSpec | None = COVID) -> Path:
    """Cross-validate and write the folder, without a process for the page."""
    result = cross_validate(cache, HEAD, TRAIN, CrossvalSpec(folds=3, by_image=False))
    audit: dict[str, Any] = {"audited": True, "passed": True, "failures": [], "warnings": []}
    with RunWriter(Path("runs"), "cv", latest=False) as writer:
        save_crossval(writer, result, audit, target=target)
    return writer.target


@pytest.mark.parametrize(
    ("change", "positive", "words"),
    [
        ({"separation": 0.7}, None, "the threshold is of other features"),
        ({"classes": ("covid", "healthy")}, None, "the threshold is of other"),
        ({"pooling": "multilevel"}, None, "the threshold is of other features"),
        ({}, "normal", "the threshold was chosen for another class"),
    ],
)
def test_a_threshold_of_another_cross_validation_is_refused(
    make_cache: MakeCache, change: dict[str, Any], positive: str | None, words: str
) -> None:
    cache = make_cache(separation=0.3)
    folder = saved(cache)
    assert threshold_from(str(folder), cache, Path("runs")).point.positive == "covid"
    other = make_cache("other.h5", **{"separation": 0.3, **change})
    with pytest.raises(MismatchError, match=words):
        threshold_from(str(folder), other, Path("runs"), positive)


def test_a_cross_validation_without_a_threshold_says_how_to_choose_one(make_cache: MakeCache) -> None:
    cache = make_cache()
    with pytest.raises(RunError, match="has no threshold") as problem:
        threshold_from(str(saved(cache, None)), cache, Path("runs"))
    assert "--positive CLASS --target-sensitivity P" in str(problem.value)


def test_a_calibrated_threshold_needs_a_calibrated_head(make_cache: MakeCache) -> None:
    cache = make_cache(separation=0.3)
    options = TrainOptions(target=threshold_from(str(saved(cache)), cache, Path("runs")), calibrate=False)
    with pytest.raises(SpecError, match="chosen on calibrated probabilities"):
        train_run(cache, HEAD, TRAIN, runs=Path("runs"), name="r", options=options)
    assert not Path("runs/r").exists()


@pytest.mark.slow
def test_a_head_with_few_validation_images_takes_the_temperature_of_the_cross_validation(
    make_cache: MakeCache, caplog: pytest.LogCaptureFixture
) -> None:
    cache = make_cache(sizes=(100, 20, 40), separation=0.3)
    chosen = threshold_from(str(saved(cache)), cache, Path("runs"))
    run = train_run(cache, HeadSpec(hidden=(4,)), TRAIN, runs=Path("runs"), options=TrainOptions(target=chosen))
    assert run.temperature == chosen.temperature != 1
    assert run.calibration["note"] == ""
    assert "other layers" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--threshold-from", "1.5", "--positive", "covid"], "threshold out of range"),
        (["--threshold-from", "nan", "--positive", "covid"], "threshold out of range"),
        (["--threshold-from", "0.5"], "a threshold needs its class"),
        (["--threshold-from", "nowhere"], "no cross-validation found, and not a number"),
        (["--threshold-from", "0.5", "--target-sensitivity", "0.9"], "a threshold is either taken or chosen"),
        (["--threshold-from", "0.5", "--positive", "flu"], "there is no class flu"),
    ],
)
def test_a_threshold_that_is_none_is_one_message(make_cache: MakeCache, arguments: list[str], words: str) -> None:
    cache, options = make_cache(), dict(zip(arguments[::2], arguments[1::2], strict=True))
    if "--target-sensitivity" in options:
        assert words in xhead("train", *arguments).stderr
        return

    def trained() -> None:
        chosen = threshold_from(options["--threshold-from"], cache, Path("runs"), options.get("--positive"))
        train_run(cache, HEAD, TRAIN, runs=Path("runs"), options=TrainOptions(target=chosen))

    with pytest.raises(XfeatError, match=words):
        trained()


@pytest.mark.slow
def test_a_given_number_is_used_as_a_model_compares_it(make_cache: MakeCache) -> None:
    make_cache(separation=0.3)
    point = answered("train", *SHORT, "--threshold-from", "0.7", "--positive", "covid")["operating_point"]
    assert point["threshold"] == float(np.float32(0.7))
    assert point["target_sensitivity"] is None
    assert point["test"]["true_positive"] > 0


def folds(scale: float, seeds: int = 1, count: int = 300) -> OutOfFold:
    """Make predictions of three folds, of which the second is overconfident by ``scale``."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 2
    logits = rng.normal(size=(seeds, count)) + 2 * (2 * labels - 1)
    fold = np.stack([np.arange(count) % 3] * seeds)
    odds = np.where(fold == 1, scale, 1.0) * logits
    second = 1 / (1 + np.exp(-odds))
    return OutOfFold(labels, np.stack([1 - second, second], -1).astype(np.float32), fold, np.arange(count))


def test_folds_are_combined_as_calibrated_probabilities_and_seeds_by_their_mean() -> None:
    one = folds(1.0)
    assert np.array_equal(one.combined.argmax(1), one.probabilities[0].argmax(1))
    assert one.combined == pytest.approx(one.calibrated[0], abs=1e-6)
    many = folds(1.0, seeds=3)
    logs = np.log(many.calibrated.astype(np.float64)).mean(0)
    expected = np.exp(logs) / np.exp(logs).sum(1, keepdims=True)
    assert many.combined == pytest.approx(expected, abs=1e-6)
    assert many.combined.shape == (300, 2)


def test_probabilities_of_0_and_1_are_combined() -> None:
    extreme = folds(1.0)
    extreme.probabilities[0, 0], extreme.probabilities[0, 1] = (1, 0), (0, 1)
    assert np.isfinite(extreme.combined).all()
    assert extreme.combined.sum(1) == pytest.approx(np.ones(300), abs=1e-6)
