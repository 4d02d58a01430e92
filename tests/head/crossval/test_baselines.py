"""scikit-learn's classifiers on the folds of a cross-validation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from tests.head.conftest import DIM, MakeCache
from tests.head.crossval.crossvalidated import SHORT, patients, untrainable, validate
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.cache.rows import read_rows
from xfeat.featurize.errors import CacheError, DataError
from xfeat.head.cli import main
from xfeat.head.crossval import baselines, training
from xfeat.head.crossval.baselines import check_memory, cross_validate_baselines
from xfeat.head.crossval.runner import cross_validate
from xfeat.head.specs import LOGISTIC, SVM, CrossvalSpec, HeadSpec, MemorySpec, TrainSpec


def test_baselines_are_tested_on_the_same_folds(make_cache: MakeCache) -> None:
    """Reference: scikit-learn, over the folds that the predictions name."""
    groups, labels = patients(30, 3)
    cache = make_cache(sizes=(90,), groups=groups, labels=labels, separation=0.3)
    result = cross_validate(cache, HeadSpec(hidden=()), TrainSpec(epochs=2), CrossvalSpec(folds=3, seeds=2))
    told: list[tuple[int, int]] = []
    found = cross_validate_baselines(result, progress=lambda done, total: told.append((done, total)))
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


def test_baselines_use_the_clean_view_only(make_cache: MakeCache) -> None:
    """Reference: the same features without other views; these would change everything."""
    labels = (np.arange(60) % 2).tolist()
    clean = np.random.default_rng(0).normal(size=(60, DIM)).astype(np.float32)
    views = np.stack([clean, 1e6 - clean], 1)
    plain = validate(make_cache(sizes=(60,), features=clean, labels=labels))
    viewed = replace(plain, cache=make_cache("views.h5", sizes=(60,), features=views, labels=labels))
    assert cross_validate_baselines(viewed) == cross_validate_baselines(plain)


def test_baselines_load_no_more_than_the_rows_of_a_fold(make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch) -> None:
    result = validate(make_cache(sizes=(90,)))
    asked: list[int] = []

    def counting(cache: FeatureCache, rows: np.ndarray, **options: Any) -> Any:
        asked.append(len(rows))
        return read_rows(cache, rows, **options)

    monkeypatch.setattr(baselines, "read_rows", counting)
    monkeypatch.setattr(baselines, "_PREDICT_ROWS", 7)
    cross_validate_baselines(result)
    assert max(asked) == 60
    assert sorted(set(asked)) == [6, 60]


def test_features_that_are_not_finite_are_named_by_baselines(make_cache: MakeCache) -> None:
    plain = validate(make_cache(sizes=(60,)))
    features = np.asarray(plain.cache.features).copy()
    features[5, 3] = np.inf
    with pytest.raises(CacheError, match="0005"):
        cross_validate_baselines(replace(plain, cache=make_cache("bad.h5", sizes=(60,), features=features)))


def test_baselines_that_need_more_memory_than_allowed_are_refused_before_anything_is_trained(
    make_cache: MakeCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """60 of 90 rows of 12 features, as float32 and as float64: 8640 bytes."""
    monkeypatch.chdir(tmp_path)
    cache = make_cache(sizes=(90,))
    check_memory(cache, CrossvalSpec(folds=3), MemorySpec(memory_mb=0.00864))
    with pytest.raises(DataError, match="--baselines"):
        check_memory(cache, CrossvalSpec(folds=3), MemorySpec(memory_mb=0.00863))
    monkeypatch.setattr(training, "fit_tasks", untrainable)
    done = CliRunner().invoke(main, [*SHORT, "--baselines", "--memory-mb", "0.001"])
    assert done.exit_code == 1
    assert "features.h5: the training features of one fold do not fit into memory" in done.stderr
    assert "--memory-mb 1" in done.stderr
    assert not Path("runs").exists()


@pytest.mark.slow
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
    assert "scikit-learn baselines with default settings:\n  logistic regression: " in text
    assert "; xfeat minus SVM, RBF kernel: " in text
