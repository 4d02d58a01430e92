"""HeadClassifier keeps scikit-learn's contract, and trains what ``fit_head`` trains."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from tests.head.conftest import cloud
from xfeat.featurize.errors import SpecError, XfeatError
from xfeat.head.classifier import HeadClassifier
from xfeat.head.data.rows import as_rows
from xfeat.head.specs import HeadSpec, TrainSpec
from xfeat.head.training.fit import fit_head


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks([HeadClassifier()])
def test_scikit_learns_estimator_checks_with_the_defaults(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks([HeadClassifier(hidden=(), epochs=40, lr=0.1, ensemble=2)])
def test_scikit_learns_estimator_checks_of_an_ensemble(estimator: Any, check: Any) -> None:
    check(estimator)


def test_without_validation_it_is_fit_head() -> None:
    """Reference: ``fit_head`` on the same rows."""
    labels = np.arange(60) % 3
    features = cloud(labels)
    fitted = fit_head(HeadSpec(), TrainSpec(epochs=3), as_rows(features, labels), None, classes=3)
    classifier = HeadClassifier(epochs=3, validation_fraction=0).fit(features, labels)
    ours, theirs = classifier.head_.state_dict(), fitted.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    expected = torch.softmax(fitted.logits(torch.from_numpy(features)), 1).numpy()
    assert np.allclose(classifier.predict_proba(features), expected, atol=1e-6)


@pytest.mark.parametrize("class_weight", [None, {0: 1.0, 1: 2.0, 2: 4.0}])
def test_an_ensemble_is_the_mean_of_heads_that_each_hold_out_a_part(class_weight: dict[int, float] | None) -> None:
    """References: scikit-learn's folds, and ``fit_head`` of each."""
    labels = np.arange(60) % 3
    features = cloud(labels, separation=0.3)
    rows = as_rows(features, labels)
    weights = None if class_weight is None else torch.tensor(list(class_weight.values()))
    folds = StratifiedGroupKFold(2, shuffle=True, random_state=7).split(labels, labels, np.arange(60))
    logits = []
    for member, (kept, left_out) in enumerate(folds):
        spec = TrainSpec(epochs=3, seed=7 + 1000 * member)
        parts = rows.take(kept), rows.take(left_out)
        logits.append(
            fit_head(HeadSpec(hidden=(8,)), spec, *parts, classes=3, class_weights=weights).logits(rows.features)
        )
    classifier = HeadClassifier((8,), epochs=3, ensemble=2, class_weight=class_weight, seed=7)
    expected = torch.stack(logits).mean(0).softmax(1).numpy()
    assert np.allclose(classifier.fit(features, labels).predict_proba(features), expected, atol=1e-5)


def test_more_heads_than_rows_of_a_class_are_named() -> None:
    with pytest.raises(ValueError, match="too few patients or images of a class for an ensemble of 5 heads"):
        HeadClassifier(ensemble=5).fit(cloud(np.arange(8) % 2), np.arange(8) % 2)


def test_it_names_classes_as_they_were_given() -> None:
    labels = np.array(["normal", "covid"])[np.arange(80) % 2]
    features = cloud(np.arange(80) % 2, separation=3)
    classifier = HeadClassifier(hidden=(), lr=0.02).fit(features, labels)
    assert classifier.classes_.tolist() == ["covid", "normal"]
    assert (classifier.predict(features) == labels).mean() > 0.9


def test_it_works_in_pipelines_and_searches() -> None:
    labels = np.arange(90) % 2
    features = cloud(labels, separation=2)
    pipeline = make_pipeline(StandardScaler(), HeadClassifier(hidden=(8,), epochs=5, lr=0.02))
    assert cross_val_score(pipeline, features, labels, cv=3).mean() > 0.8
    search = GridSearchCV(HeadClassifier(epochs=2), {"hidden": [(), (8,)]}, cv=2).fit(features, labels)
    assert search.best_params_["hidden"] in [(), (8,)]


def test_read_only_features_give_no_warning() -> None:
    """Such as those of a cache, which are mapped; pytest turns torch's warning into an error."""
    labels = np.arange(20) % 2
    features = cloud(labels)
    features.flags.writeable = False
    classifier = HeadClassifier(hidden=(), epochs=1).fit(features, labels)
    assert np.array_equal(classifier.predict_proba(features), classifier.predict_proba(features.copy()))


@pytest.mark.parametrize("hidden", [(8.5,), ("8",), (0,), "512"])
def test_widths_that_are_not_numbers_are_an_error(hidden: Any) -> None:
    with pytest.raises(SpecError, match=r"bad width|hidden has another type"):
        HeadClassifier(hidden=hidden, epochs=1).fit(cloud(np.arange(20) % 2), np.arange(20) % 2)


def test_a_setting_out_of_range_is_an_error_at_fit() -> None:
    with pytest.raises(SpecError, match="learning rate"):
        HeadClassifier(lr=-1).fit(cloud(np.arange(20) % 2), np.arange(20) % 2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"ensemble": 0},
        {"ensemble": "two"},
        {"validation_fraction": -1},
        {"validation_fraction": 2.0},
        {"validation_fraction": None},
        {"epochs": "10"},
        {"epochs": 1.5},
        {"seed": -1},
        {"seed": "a"},
        {"class_weight": {"no such class": 1.0}},
        {"class_weight": "heavy"},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    labels = np.arange(20) % 2
    with pytest.raises(XfeatError) as refused:
        HeadClassifier(**{"epochs": 1, **wrong}).fit(cloud(labels), labels)
    assert isinstance(refused.value, ValueError)


@pytest.mark.parametrize(
    "X",
    [np.full((20, 4), np.nan), np.zeros((20, 0)), np.zeros(20), [["a"] * 4] * 20, np.zeros((19, 4)), None],
    ids=["NaN", "no columns", "one axis", "text", "other length", "None"],
)
def test_features_that_cannot_be_used_are_one_error_of_this_project(X: Any) -> None:
    with pytest.raises(XfeatError) as refused:
        HeadClassifier(epochs=1).fit(X, np.arange(20) % 2)
    assert isinstance(refused.value, ValueError | TypeError)


def test_a_generator_as_seed_draws_one() -> None:
    labels = np.arange(20) % 2
    fitted = [
        HeadClassifier(hidden=(), epochs=1, seed=np.random.RandomState(seed)).fit(cloud(labels), labels)
        for seed in (0, 0, 1)
    ]
    same, again, other = (model.decision_function(cloud(labels)).tolist() for model in fitted)
    assert same == again != other
