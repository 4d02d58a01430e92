"""Cross-validation: who is tested by whom, and the figures over it."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tests.head.conftest import DIM, MakeCache
from tests.head.crossval.crossvalidated import HEAD, TRAIN, patients, validate
from xfeat.featurize.datasets.layouts import NO_LABEL
from xfeat.featurize.errors import DataError, DivergedError, SpecError
from xfeat.head.cli import main
from xfeat.head.crossval.runner import OutOfFold, _folds, cross_validate
from xfeat.head.data.rows import labelled_rows, plan_reading
from xfeat.head.evaluation.predictions import softmax
from xfeat.head.specs import CrossvalSpec, HeadSpec, MemorySpec, TrainSpec
from xfeat.head.training.fit import fit_head


def test_folds_share_no_patient_and_cover_all_rows(make_cache: MakeCache) -> None:
    groups, labels = patients(40, 3)
    cache = make_cache(sizes=(120,), groups=groups, labels=labels)
    keys, truth = cache.group_keys, np.array(labels)
    folds = _folds(cache, truth, keys, CrossvalSpec(folds=5), seed=0)
    assert sorted(np.concatenate([fold.test for fold in folds]).tolist()) == list(range(120))
    for fold in folds:
        assert sorted(np.concatenate(fold).tolist()) == list(range(120))
        train, valid, test = (set(keys[part].tolist()) for part in fold)
        assert not train & valid
        assert not train & test
        assert not valid & test
        assert truth[fold.test].mean() == pytest.approx(0.5, abs=0.1)
        assert len(fold.valid) == pytest.approx(0.2 * 96, abs=6)


def test_test_rows_do_not_influence_the_training(make_cache: MakeCache) -> None:
    """Features and labels of fold 0 are changed; the head that fold 0 tests answers as before on other rows."""
    cache = make_cache(sizes=(60,))
    truth = np.asarray(cache.columns.label).astype(np.int64)
    fold = _folds(cache, truth, cache.group_keys, CrossvalSpec(folds=3), seed=0)[0]
    changed = np.array(cache.features)
    changed[fold.test] = 7.0
    other = make_cache("other.h5", sizes=(60,), features=changed)
    first, second = validate(cache), validate(other)
    assert (first.main.fold == second.main.fold).all()
    # the head of fold 0 sees constant rows now: all its answers are alike, and come from unchanged training rows
    answers = second.main.probabilities[0, fold.test]
    assert (answers == answers[0]).all()
    rest = np.setdiff1d(np.arange(60), fold.test)
    assert not np.array_equal(second.main.probabilities[0, rest], first.main.probabilities[0, rest])


def test_all_labelled_rows_are_used_and_the_split_is_ignored(make_cache: MakeCache) -> None:
    labels = [0, 1] * 35
    labels[5] = NO_LABEL
    result = validate(make_cache(sizes=(40, 20, 10), labels=labels))
    assert len(result.rows) == 69
    assert 5 not in result.rows


def test_seeds_beyond_32_bits_are_refused(make_cache: MakeCache) -> None:
    with pytest.raises(SpecError, match="seed is out of range"):
        cross_validate(make_cache(), HEAD, TrainSpec(seed=2**32 - 1), CrossvalSpec(seeds=2))


def test_the_same_seed_gives_the_same_figures_and_another_other_folds(make_cache: MakeCache) -> None:
    cache = make_cache(sizes=(60,), separation=0.4)
    first, again = validate(cache), validate(cache)
    assert np.array_equal(first.main.probabilities, again.main.probabilities)
    twice = validate(cache, seeds=2)
    assert np.array_equal(twice.main.probabilities[0], first.main.probabilities[0])
    assert not np.array_equal(twice.main.fold[0], twice.main.fold[1])
    assert twice.main.probabilities.shape == (2, 60, 2)


def test_the_metrics_are_those_of_a_plain_loop() -> None:
    """Reference: accuracy per fold and seed, numpy's mean and standard deviation."""
    rng = np.random.default_rng(0)
    labels, fold = np.arange(30) % 2, np.stack([np.arange(30) % 3, np.arange(30) // 10])
    result = OutOfFold(labels, rng.random((2, 30, 2), np.float32), fold, np.arange(30))
    scores = []
    for seed in range(2):
        for number in range(3):
            rows = [row for row in range(30) if fold[seed, row] == number]
            right = [result.probabilities[seed, row].argmax() == labels[row] for row in rows]
            scores.append(sum(right) / len(right))
    found = result.accuracy(seed=0)
    assert found["folds"] == pytest.approx(scores)
    assert found["mean"] == pytest.approx(np.mean(scores))
    assert found["std"] == pytest.approx(np.std(scores, ddof=1))
    assert found["interval"][0] < result.correct.mean() < found["interval"][1]
    assert np.sum(result.metrics(("a", "b"))["confusion_matrix"]) == 30  # images, not images × seeds


def test_image_level_folds_show_the_leakage(make_cache: MakeCache) -> None:
    """Every patient is a random point of a random class: by patient there is nothing to learn, by image there is."""
    rng = np.random.default_rng(0)
    groups, _ = patients(60, 4)
    centres, classes = rng.normal(size=(60, DIM)) * 5, rng.permutation(np.arange(60) % 2)
    features = (np.repeat(centres, 4, 0) + rng.normal(size=(240, DIM)) * 0.1).astype(np.float32)
    cache = make_cache(sizes=(240,), groups=groups, labels=np.repeat(classes, 4).tolist(), features=features)
    spec = TrainSpec(epochs=30, lr=0.01)
    result = cross_validate(cache, HeadSpec(hidden=(64,)), spec, CrossvalSpec(folds=3))
    assert result.grouped
    assert len(np.unique(result.main.groups)) == 60
    assert result.by_image is not None
    assert result.by_image.correct.mean() > result.main.correct.mean() + 0.2


def test_without_groups_there_are_no_image_level_folds(make_cache: MakeCache) -> None:
    result = validate(make_cache(sizes=(60,)))
    assert not result.grouped
    assert result.by_image is None


@pytest.mark.parametrize(("count", "fix"), [(8, "--folds 4"), (4, "add images")])
def test_more_folds_than_patients_are_an_error(make_cache: MakeCache, count: int, fix: str) -> None:
    groups, labels = patients(count, 5)
    cache = make_cache(sizes=(count * 5,), groups=groups, labels=labels)
    with pytest.raises(DataError, match="too few patients or images for 5 folds") as problem:
        cross_validate(cache, HEAD, TRAIN, CrossvalSpec())
    assert fix in str(problem.value)


def test_too_few_patients_to_validate_within_a_fold_are_an_error(make_cache: MakeCache) -> None:
    groups, labels = patients(4, 5)
    cache = make_cache(sizes=(20,), groups=groups, labels=labels)
    with pytest.raises(DataError, match="within a fold"):
        cross_validate(cache, HEAD, TRAIN, CrossvalSpec(folds=2))


def test_one_class_is_named(make_cache: MakeCache) -> None:
    with pytest.raises(DataError, match="two classes"):
        validate(make_cache(classes=("a",)))


@pytest.mark.parametrize("settings", [{"folds": 1}, {"seeds": 0}])
def test_a_plan_out_of_range_is_refused(settings: dict[str, int]) -> None:
    with pytest.raises(SpecError):
        CrossvalSpec(**settings)


def test_the_command_prints_the_contract_and_writes_the_predictions(make_cache: MakeCache, tmp_path: Path) -> None:
    groups, labels = patients(30, 3)
    cache = make_cache(sizes=(90,), groups=groups, labels=labels)
    places = ["--features", str(cache.path), "--runs", str(tmp_path / "runs")]
    arguments = ["crossval", *places, "--folds", "3", "--epochs", "2", "--hidden", "linear"]
    done = CliRunner().invoke(main, [*arguments, "--json"])
    answer = json.loads(done.stdout)
    assert {"mean", "std", "interval"} <= set(answer["accuracy"])
    assert np.sum(answer["confusion_matrix"]) == 90
    assert (answer["grouped"], answer["folds"], answer["seeds"]) == (True, 3, 1)
    with Path(answer["crossval"], "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 90
    right = np.mean([row["prediction"] == row["label"] for row in rows])
    assert right == pytest.approx(np.trace(answer["confusion_matrix"]) / 90)
    text = CliRunner().invoke(main, arguments).stdout
    assert "is ignored" in text
    assert "image-level folds" in text
    assert f"{100 * answer['accuracy']['mean']:.1f} %" in text


def test_each_fold_has_the_predictions_of_a_head_trained_alone(make_cache: MakeCache) -> None:
    """Reference: :func:`xfeat.head.training.fit.fit_head` on each fold's rows, one after the other."""
    groups, labels = patients(30, 3)
    cache = make_cache(sizes=(90,), groups=groups, labels=labels, separation=0.5)
    result = validate(cache, seeds=2)
    truth, keys = np.array(labels), cache.group_keys
    for seed in range(2):
        for number, fold in enumerate(_folds(cache, truth, keys, CrossvalSpec(folds=3), seed=seed)):
            assert (result.main.fold[seed, fold.test] == number).all()
            parts = (labelled_rows(cache, part) for part in (fold.train, fold.valid))
            alone = fit_head(HEAD, replace(TRAIN, seed=seed), *parts, classes=2)
            expected = softmax(alone.logits(labelled_rows(cache, fold.test).features).numpy())
            np.testing.assert_allclose(result.main.probabilities[seed, fold.test], expected, atol=1e-4)


def test_rows_on_the_disk_are_tested_by_heads_that_read_them_there(make_cache: MakeCache) -> None:
    """Reference: :func:`xfeat.head.training.fit.fit_head` on the same blocks."""
    cache, memory = make_cache(sizes=(90,)), MemorySpec(memory_mb=0.002)
    result = cross_validate(cache, HEAD, TRAIN, CrossvalSpec(folds=3), memory=memory)
    reading = plan_reading(cache, 90, memory)
    assert reading.to_dict()["mode"] == "blocks"
    truth = np.asarray(cache.columns.label).astype(np.int64)
    fold = _folds(cache, truth, cache.group_keys, CrossvalSpec(folds=3), seed=0)[1]
    alone = fit_head(HEAD, TRAIN, *(reading.load(cache, part) for part in (fold.train, fold.valid)), classes=2)
    expected = softmax(alone.logits_of(reading.load(cache, fold.test)).numpy())
    np.testing.assert_allclose(result.main.probabilities[0, fold.test], expected, atol=1e-4)


def test_a_diverging_head_is_named(make_cache: MakeCache) -> None:
    with pytest.raises(DivergedError, match="diverged"):
        cross_validate(make_cache(sizes=(60,)), HEAD, TrainSpec(lr=1e38), CrossvalSpec(folds=3))
