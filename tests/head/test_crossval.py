"""Cross-validation: who is tested by whom, and the figures over it."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from featurize.cache import FeatureCache
from featurize.dataset import NO_LABEL
from featurize.errors import BusyError, CacheError, DataError, DivergedError, Interrupted, OutputError, SpecError
from head import crossval_baselines, crossval_training
from head.batched import Task, fit_tasks
from head.cli import main
from head.compare_baselines import LOGISTIC, SVM
from head.crossval import CrossValidation, OutOfFold, _folds, cross_validate, parts_folder
from head.crossval_baselines import check_memory, fold_baselines
from head.crossval_table import check_target
from head.crossval_training import kept_answers
from head.fit import fit_head
from head.predictions import softmax
from head.rows import labelled_rows, plan_reading, read_rows
from head.specs import CrossvalSpec, HeadSpec, MemorySpec, TrainSpec
from head.splits import group_keys
from head.sweep_results import locked_folder
from tests.head.conftest import DIM, MakeCache

HEAD, TRAIN = HeadSpec(hidden=()), TrainSpec(epochs=2, lr=0.02)


def validate(cache: FeatureCache, **plan: int) -> CrossValidation:
    return cross_validate(cache, HEAD, TRAIN, CrossvalSpec(folds=3, **plan))


def patients(count: int, images: int) -> tuple[list[str], list[int]]:
    """Return groups and labels of ``count`` patients with some images each."""
    rows = np.repeat(np.arange(count), images)
    return [f"p{row}" for row in rows], (rows % 2).tolist()


def test_folds_share_no_patient_and_cover_all_rows(make_cache: MakeCache) -> None:
    groups, labels = patients(40, 3)
    cache = make_cache(sizes=(120,), groups=groups, labels=labels)
    keys, truth = group_keys(cache), np.array(labels)
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


def test_the_test_fold_has_no_say_in_what_is_trained(make_cache: MakeCache) -> None:
    """Features and labels of fold 0 are changed; the head that fold 0 tests answers as before on other rows."""
    cache = make_cache(sizes=(60,))
    truth = np.asarray(cache.columns.label).astype(np.int64)
    fold = _folds(cache, truth, group_keys(cache), CrossvalSpec(folds=3), seed=0)[0]
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


def test_all_labelled_rows_take_part_whatever_the_split(make_cache: MakeCache) -> None:
    cache = make_cache(sizes=(40, 20, 10), labels=[0, 1] * 35)
    cache.columns.label[5] = NO_LABEL
    result = validate(cache)
    assert len(result.rows) == 69
    assert 5 not in result.rows


def test_the_same_seed_gives_the_same_figures_and_another_other_folds(make_cache: MakeCache) -> None:
    cache = make_cache(sizes=(60,), separation=0.4)
    first, again = validate(cache), validate(cache)
    assert np.array_equal(first.main.probabilities, again.main.probabilities)
    twice = validate(cache, seeds=2)
    assert np.array_equal(twice.main.probabilities[0], first.main.probabilities[0])
    assert not np.array_equal(twice.main.fold[0], twice.main.fold[1])
    assert twice.main.probabilities.shape == (2, 60, 2)


def test_the_figures_are_those_of_a_plain_loop() -> None:
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
    assert np.sum(result.metrics(("a", "b"))["confusion_matrix"]) == 60


def test_leaking_patients_show_as_a_number(make_cache: MakeCache) -> None:
    """Every patient is a random point of a random class: by patient there is nothing to learn, by image there is."""
    rng = np.random.default_rng(0)
    groups, _ = patients(60, 4)
    centres, classes = rng.normal(size=(60, DIM)) * 5, rng.permutation(np.arange(60) % 2)
    features = (np.repeat(centres, 4, 0) + rng.normal(size=(240, DIM)) * 0.1).astype(np.float32)
    cache = make_cache(sizes=(240,), groups=groups, labels=np.repeat(classes, 4).tolist(), features=features)
    spec = TrainSpec(epochs=30, lr=0.01)
    result = cross_validate(cache, HeadSpec(hidden=(64,)), spec, CrossvalSpec(folds=3)).to_dict(seed=0)
    assert result["grouped"] is True
    assert result["groups"] == 60
    assert result["by_image"]["accuracy"]["mean"] > result["accuracy"]["mean"] + 0.2


def test_without_groups_there_is_one_comparison_less(make_cache: MakeCache) -> None:
    result = validate(make_cache(sizes=(60,))).to_dict(seed=0)
    assert result["grouped"] is False
    assert result["by_image"] is None


@pytest.mark.parametrize(("count", "mend"), [(8, "--folds 4"), (4, "add images")])
def test_more_folds_than_patients_are_named(make_cache: MakeCache, count: int, mend: str) -> None:
    groups, labels = patients(count, 5)
    cache = make_cache(sizes=(count * 5,), groups=groups, labels=labels)
    with pytest.raises(DataError, match="5 folds are more") as problem:
        cross_validate(cache, HEAD, TRAIN, CrossvalSpec())
    assert mend in str(problem.value)


def test_too_few_patients_to_validate_within_a_fold_are_named(make_cache: MakeCache) -> None:
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
    table = tmp_path / "out.csv"
    arguments = ["crossval", "--features", str(cache.path), "--folds", "3", "--epochs", "2", "--hidden", "linear"]
    done = CliRunner().invoke(main, [*arguments, "--predictions", str(table), "--json"])
    answer = json.loads(done.stdout)
    assert {"mean", "std", "interval"} <= set(answer["accuracy"])
    assert np.sum(answer["confusion_matrix"]) == 90
    assert (answer["grouped"], answer["folds"], answer["seeds"]) == (True, 3, 1)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 90
    right = np.mean([row["prediction"] == row["label"] for row in rows])
    assert right == pytest.approx(np.trace(answer["confusion_matrix"]) / 90)
    text = CliRunner().invoke(main, arguments).stdout
    assert "plays no role" in text
    assert "image by image" in text
    assert f"{100 * answer['accuracy']['mean']:.1f} %" in text


SHORT = ["crossval", "--folds", "2", "--epochs", "1", "--hidden", "linear"]


def untrainable(*arguments: object, **options: object) -> None:
    raise AssertionError("nothing is to be trained")


@pytest.mark.parametrize("target", ["features.h5/out.csv", "folder", "new/out.csv/"])
def test_predictions_that_cannot_be_written_are_named_before_anything_is_trained(
    make_cache: MakeCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make_cache()
    Path("folder").mkdir()
    Path("new", "out.csv").mkdir(parents=True)
    monkeypatch.setattr(crossval_training, "fit_tasks", untrainable)
    done = CliRunner().invoke(main, [*SHORT, "--predictions", target])
    assert done.exit_code == 1
    assert "choose another place with --predictions" in done.stderr
    assert not Path("runs").exists()


def test_looking_at_a_target_leaves_nothing(tmp_path: Path) -> None:
    check_target(tmp_path / "a" / "b" / "out.csv")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fails", ["head.crossval_table.save_out_of_fold", "head.crossval_baselines.fold_baselines"])
def test_what_fails_after_the_last_fold_costs_no_fold(
    make_cache: MakeCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """A full disk, say; the second call has the answers of the first, and trains nothing."""
    monkeypatch.chdir(tmp_path)
    make_cache()
    command = [*SHORT, "--predictions", "out.csv", "--baselines", "--json"]

    def fail(*arguments: object, **options: object) -> None:
        raise OutputError("cannot be written: the disk is full", path="out.csv")

    with monkeypatch.context() as broken:
        broken.setattr(fails, fail)
        first = CliRunner().invoke(main, command)
    assert first.exit_code == 1
    assert "2 finished folds are kept in runs" in first.stderr

    def nothing_left(tasks: list[Task], **options: Any) -> Any:
        assert tasks == []
        return fit_tasks(tasks, **options)

    monkeypatch.setattr(crossval_training, "fit_tasks", nothing_left)
    second = CliRunner().invoke(main, command)
    assert second.exit_code == 0, second.output
    assert Path("out.csv").is_file()
    assert not list(Path("runs").iterdir())


def test_each_fold_is_answered_as_by_a_head_trained_alone(make_cache: MakeCache) -> None:
    """Reference: :func:`head.fit.fit_head` on each fold's rows, one after the other."""
    groups, labels = patients(30, 3)
    cache = make_cache(sizes=(90,), groups=groups, labels=labels, separation=0.5)
    result = validate(cache, seeds=2)
    truth, keys = np.array(labels), group_keys(cache)
    for seed in range(2):
        for number, fold in enumerate(_folds(cache, truth, keys, CrossvalSpec(folds=3), seed=seed)):
            assert (result.main.fold[seed, fold.test] == number).all()
            parts = (labelled_rows(cache, part) for part in (fold.train, fold.valid))
            alone = fit_head(HEAD, replace(TRAIN, seed=seed), *parts, classes=2)
            expected = softmax(alone.logits(labelled_rows(cache, fold.test).features).numpy())
            np.testing.assert_allclose(result.main.probabilities[seed, fold.test], expected, atol=1e-4)


def test_rows_on_the_disk_are_tested_by_heads_that_read_them_there(make_cache: MakeCache) -> None:
    """Reference: :func:`head.fit.fit_head` on the same blocks."""
    cache, memory = make_cache(sizes=(90,)), MemorySpec(memory_mb=0.002)
    result = cross_validate(cache, HEAD, TRAIN, CrossvalSpec(folds=3), memory=memory)
    reading = plan_reading(cache, 90, memory)
    assert reading.to_dict()["mode"] == "blocks"
    truth = np.asarray(cache.columns.label).astype(np.int64)
    fold = _folds(cache, truth, group_keys(cache), CrossvalSpec(folds=3), seed=0)[1]
    alone = fit_head(HEAD, TRAIN, *(reading.load(cache, part) for part in (fold.train, fold.valid)), classes=2)
    expected = softmax(alone.logits_of(reading.load(cache, fold.test)).numpy())
    np.testing.assert_allclose(result.main.probabilities[0, fold.test], expected, atol=1e-4)


class StopAfter:
    """A Ctrl-C when so many folds are done; counts the folds."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.calls: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        self.calls.append((done, total))
        if done == self.count:
            raise KeyboardInterrupt


def test_finished_folds_are_kept_and_the_same_call_trains_only_the_others(
    make_cache: MakeCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, plan = make_cache(sizes=(60,)), CrossvalSpec(folds=3, seeds=2)
    whole = cross_validate(cache, HEAD, TRAIN, plan)
    parts = tmp_path / "new" / "c.parts"
    with pytest.raises(Interrupted, match="4 finished folds") as stop, kept_answers(parts) as kept:
        cross_validate(cache, HEAD, TRAIN, plan, kept=kept, progress=StopAfter(4))
    assert "same command again" in str(stop.value)
    assert len(list(parts.glob("*.npy"))) == 4
    trained: list[int] = []

    def counting(tasks: list[Task], **options: Any) -> Any:
        trained.append(len(tasks))
        return fit_tasks(tasks, **options)

    monkeypatch.setattr(crossval_training, "fit_tasks", counting)
    with kept_answers(parts) as kept:
        again = cross_validate(cache, HEAD, TRAIN, plan, kept=kept)
        assert len(list(parts.glob("*.npy"))) == 6  # until all that is asked for has been done with them
    assert trained == [2]
    np.testing.assert_array_equal(again.main.probabilities, whole.main.probabilities)
    np.testing.assert_array_equal(again.main.fold, whole.main.fold)
    assert not list((tmp_path / "new").iterdir())


def test_a_damaged_part_is_trained_again(make_cache: MakeCache, tmp_path: Path) -> None:
    cache, plan = make_cache(sizes=(60,)), CrossvalSpec(folds=3)
    with pytest.raises(Interrupted), kept_answers(tmp_path / "c.parts") as kept:
        cross_validate(cache, HEAD, TRAIN, plan, kept=kept, progress=StopAfter(2))
    for file in (tmp_path / "c.parts").glob("*.npy"):
        file.write_bytes(file.read_bytes()[:50])
    with kept_answers(tmp_path / "c.parts") as kept:
        again = cross_validate(cache, HEAD, TRAIN, plan, kept=kept)
    np.testing.assert_array_equal(again.main.probabilities, validate(cache).main.probabilities)


def test_a_cache_written_into_under_a_cross_validation_is_named_and_no_answer_kept(
    make_cache: MakeCache, tmp_path: Path
) -> None:
    cache, content = make_cache(sizes=(60,)), make_cache("b.h5", sizes=(60,), separation=2.0).path.read_bytes()

    def overwrite(done: int, total: int) -> None:
        cache.path.write_bytes(content)

    plan = CrossvalSpec(folds=3)
    with pytest.raises(CacheError, match="another cache was written"), kept_answers(tmp_path / "c.parts") as kept:
        cross_validate(cache, HEAD, TRAIN, plan, kept=kept, progress=overwrite)
    assert not (tmp_path / "c.parts").exists()


def test_two_processes_cannot_be_at_one_cross_validation(tmp_path: Path) -> None:
    folder = tmp_path / "c.parts"
    with (
        locked_folder(folder, "cross-validation"),
        pytest.raises(BusyError, match="cross-validation"),
        kept_answers(folder),
    ):
        pass
    assert folder.exists()  # it is the other's


def test_what_is_refused_or_stopped_before_the_first_fold_leaves_nothing(make_cache: MakeCache, tmp_path: Path) -> None:
    cache, parts = make_cache(sizes=(60,)), tmp_path / "new" / "c.parts"
    with pytest.raises(DataError), kept_answers(parts) as kept:
        cross_validate(cache, HEAD, TRAIN, CrossvalSpec(folds=40), kept=kept)
    with pytest.raises(KeyboardInterrupt), kept_answers(parts) as kept:
        cross_validate(cache, HEAD, TRAIN, CrossvalSpec(folds=3), kept=kept, progress=StopAfter(0))
    assert not (tmp_path / "new").exists()


def test_answers_of_a_training_that_diverges_later_are_of_no_use_and_go(tmp_path: Path) -> None:
    folder = tmp_path / "c.parts"

    def diverge() -> None:
        np.save(folder / "grouped-seed0-fold0.npy", np.zeros(3))
        raise DivergedError("training diverged")

    with pytest.raises(DivergedError), kept_answers(folder):
        diverge()
    assert not folder.exists()


def test_whatever_decides_about_the_answers_has_a_folder_of_its_own(make_cache: MakeCache, tmp_path: Path) -> None:
    first, second = make_cache(sizes=(60,)), make_cache("b.h5", sizes=(60,), separation=2.0)
    plan, memory = CrossvalSpec(), MemorySpec()
    folders = {
        parts_folder(tmp_path, *settings)
        for settings in (
            (first, HEAD, TRAIN, plan, memory),
            (second, HEAD, TRAIN, plan, memory),
            (first, HeadSpec(), TRAIN, plan, memory),
            (first, HEAD, TrainSpec(), plan, memory),
            (first, HEAD, TRAIN, CrossvalSpec(seeds=2), memory),
            (first, HEAD, TRAIN, plan, MemorySpec(memory_mb=1)),
        )
    }
    assert len(folders) == 6


def test_a_diverging_head_is_named(make_cache: MakeCache) -> None:
    with pytest.raises(DivergedError, match="diverged"):
        cross_validate(make_cache(sizes=(60,)), HEAD, TrainSpec(lr=1e38), CrossvalSpec(folds=3))


@pytest.mark.skipif(os.name == "nt", reason="SIGINT reaches a child otherwise there")
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_the_command_goes_on_after_it_was_stopped(make_cache: MakeCache, tmp_path: Path, sign: signal.Signals) -> None:
    cache = make_cache(sizes=(200,), separation=0.3)
    arguments = ["crossval", "--features", str(cache.path), "--runs", str(tmp_path / "runs"), "--seeds", "3"]
    arguments += ["--epochs", "20", "--hidden", "64", "--json"]
    code = "from head.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path
    ) as process:
        deadline = time.monotonic() + 60
        while len(list((tmp_path / "runs").glob("crossval-*.parts/*.npy"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(sign)
        _, words = process.communicate()
    kept = list((tmp_path / "runs").glob("crossval-*.parts/*.npy"))
    assert 3 <= len(kept) < 15
    if sign == signal.SIGINT:
        assert b"run the same command again to go on" in words
    assert process.returncode != 0
    done = CliRunner().invoke(main, arguments)
    answer = json.loads(done.stdout)
    assert len(answer["accuracy"]["folds"]) == 15
    assert not list((tmp_path / "runs").iterdir())


def test_baselines_are_tested_on_the_same_folds(make_cache: MakeCache) -> None:
    """Reference: scikit-learn, over the folds that the predictions name."""
    groups, labels = patients(30, 3)
    cache = make_cache(sizes=(90,), groups=groups, labels=labels, separation=0.3)
    result = cross_validate(cache, HeadSpec(hidden=()), TrainSpec(epochs=2), CrossvalSpec(folds=3, seeds=2))
    told: list[tuple[int, int]] = []
    found = fold_baselines(result, seed=0, progress=lambda done, total: told.append((done, total)))
    features = np.asarray(cache.features)
    for row, model in zip(found, (LogisticRegression(max_iter=2000), SVC()), strict=True):
        right = np.zeros((2, 90))
        for seed, fold in enumerate(result.main.fold):
            for number in range(3):
                test = fold == number
                scaler = StandardScaler().fit(features[~test])
                model.fit(scaler.transform(features[~test]), np.array(labels)[~test])
                right[seed, test] = model.predict(scaler.transform(features[test])) == np.array(labels)[test]
        folds = [right[s, result.main.fold[s] == number].mean() for s in range(2) for number in range(3)]
        assert row["accuracy"]["folds"] == pytest.approx(folds)
        assert row["difference"]["accuracy"] == pytest.approx(result.main.correct.mean() - right.mean())
        low, high = row["difference"]["interval"]
        assert low <= row["difference"]["accuracy"] <= high
    assert told[-1] == (12, 12)


def test_baselines_look_at_the_clean_view_alone(make_cache: MakeCache) -> None:
    """Reference: the same features without other views; these are not even finite."""
    labels = (np.arange(60) % 2).tolist()
    clean = np.random.default_rng(0).normal(size=(60, DIM)).astype(np.float32)
    views = np.stack([clean, np.full_like(clean, np.nan)], 1)
    plain = validate(make_cache(sizes=(60,), features=clean, labels=labels))
    viewed = replace(plain, cache=make_cache("views.h5", sizes=(60,), features=views, labels=labels))
    assert fold_baselines(viewed, seed=0) == fold_baselines(plain, seed=0)


def test_baselines_hold_no_more_than_the_rows_of_a_fold(make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch) -> None:
    result = validate(make_cache(sizes=(90,)))
    asked: list[int] = []

    def counting(cache: FeatureCache, rows: np.ndarray, **options: Any) -> Any:
        asked.append(len(rows))
        return read_rows(cache, rows, **options)

    monkeypatch.setattr(crossval_baselines, "read_rows", counting)
    monkeypatch.setattr(crossval_baselines, "_TESTED_AT_ONCE", 7)
    fold_baselines(result, seed=0)
    assert max(asked) == 60
    assert sorted(set(asked)) == [6, 60]


def test_features_that_are_not_finite_are_named_by_baselines(make_cache: MakeCache) -> None:
    plain = validate(make_cache(sizes=(60,)))
    features = np.asarray(plain.cache.features).copy()
    features[5, 3] = np.inf
    with pytest.raises(CacheError, match="0005"):
        fold_baselines(replace(plain, cache=make_cache("bad.h5", sizes=(60,), features=features)), seed=0)


def test_baselines_that_need_more_memory_than_allowed_are_refused_before_anything_is_trained(
    make_cache: MakeCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """60 of 90 rows of 12 features, as float32 and as float64: 8640 bytes."""
    monkeypatch.chdir(tmp_path)
    cache = make_cache(sizes=(90,))
    check_memory(cache, CrossvalSpec(folds=3), MemorySpec(memory_mb=0.00864))
    with pytest.raises(DataError, match="--baselines"):
        check_memory(cache, CrossvalSpec(folds=3), MemorySpec(memory_mb=0.00863))
    monkeypatch.setattr(crossval_training, "fit_tasks", untrainable)
    done = CliRunner().invoke(main, [*SHORT, "--baselines", "--memory-mb", "0.001"])
    assert done.exit_code == 1
    assert "features.h5: the baselines need" in done.stderr
    assert "--memory-mb 1" in done.stderr
    assert not Path("runs").exists()


def test_the_command_shows_baselines_when_asked(
    make_cache: MakeCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_cache()
    command = ["crossval", "--folds", "2", "--epochs", "1", "--hidden", "linear"]
    assert "baselines" not in json.loads(CliRunner().invoke(main, [*command, "--json"]).stdout)
    answer = json.loads(CliRunner().invoke(main, [*command, "--baselines", "--json"]).stdout)
    assert [row["name"] for row in answer["baselines"]] == [LOGISTIC, SVM]
    text = CliRunner().invoke(main, [*command, "--baselines"]).stdout
    assert "SVM, RBF kernel (scikit-learn): " in text
    assert "heads less this: " in text
