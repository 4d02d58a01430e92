"""Classifiers of scikit-learn as heads: the softmax of the head is their ``predict_proba``, or they are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from sklearn.calibration import CalibratedClassifierCV
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, RidgeClassifier, SGDClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, Normalizer, RobustScaler, StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

from xfeat.export.build.classifier_head import classifier_head
from xfeat.export.build.dense_head import DenseHead
from xfeat.featurize.errors import XfeatError
from xfeat.head.classifier import HeadClassifier

ROWS, DIM = 60, 5
RNG = np.random.default_rng(0)
X = (RNG.normal(size=(ROWS, DIM)) * [1, 2, 0.5, 3, 1] + [0, 3, -1, 5, 2]).astype(np.float32)
TWO = np.array(["healthy", "ill"])[(X[:, 0] + RNG.normal(size=ROWS) > 0).astype(int)]
TABLE = pandas.DataFrame(X, columns=[f"f{number}" for number in range(DIM)])
THREE = np.digitize(X[:, 1] + RNG.normal(size=ROWS), [2, 4])


def logistic(**settings: Any) -> LogisticRegression:
    return LogisticRegression(max_iter=1000, **settings)


RIGHT: dict[str, Callable[[], Any]] = {
    "logistic": logistic,
    "without an intercept": lambda: logistic(fit_intercept=False),
    "class weights": lambda: logistic(class_weight="balanced"),
    "strong penalty": lambda: logistic(C=1e-3),
    "standardised": lambda: make_pipeline(StandardScaler(), logistic()),
    "centred": lambda: make_pipeline(StandardScaler(with_std=False), logistic()),
    "scaled": lambda: make_pipeline(StandardScaler(with_mean=False), logistic()),
    "neither": lambda: make_pipeline(StandardScaler(with_mean=False, with_std=False), logistic()),
    "robust": lambda: make_pipeline(RobustScaler(), logistic()),
    "robust, not centred": lambda: make_pipeline(RobustScaler(with_centering=False), logistic()),
    "minimum and maximum": lambda: make_pipeline(MinMaxScaler((-1, 2)), logistic()),
    "largest": lambda: make_pipeline(MaxAbsScaler(), logistic()),
    "two scalers, one in a pipeline of its own": lambda: make_pipeline(
        StandardScaler(), "passthrough", make_pipeline(MinMaxScaler(), logistic())
    ),
    "search": lambda: GridSearchCV(
        make_pipeline(StandardScaler(), logistic()), {"logisticregression__C": [1, 2]}, cv=2
    ),
    "own search": lambda: make_pipeline(StandardScaler(), LogisticRegressionCV(Cs=2, cv=2, max_iter=1000)),
    "discriminant": LinearDiscriminantAnalysis,
    "head": lambda: HeadClassifier(hidden=(8,), epochs=2),
    "linear head with dropout of features": lambda: HeadClassifier(hidden=(), epochs=2, feature_dropout=0.1),
    "ensemble": lambda: HeadClassifier(hidden=(8,), epochs=2, ensemble=2),
    "head, standardised twice": lambda: make_pipeline(
        StandardScaler(), MinMaxScaler(), HeadClassifier(hidden=(8, 8), epochs=2)
    ),
}


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param(TWO, id="two"),
        pytest.param(THREE, id="three", marks=pytest.mark.slow),
        pytest.param(TWO == "ill", id="bool", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("kind", RIGHT)
@pytest.mark.filterwarnings("ignore")
def test_the_head_has_the_probabilities_of_the_classifier(kind: str, labels: Any) -> None:
    fitted = RIGHT[kind]().fit(X, labels)
    found = classifier_head(fitted)
    with torch.inference_mode():
        logits = found.head(torch.from_numpy(X))
        folded, _ = DenseHead(found.head)(torch.from_numpy(X))
    assert np.allclose(logits.softmax(1).numpy(), fitted.predict_proba(X), atol=1e-5)
    assert np.allclose(folded.softmax(1).numpy(), fitted.predict_proba(X), atol=1e-5)
    assert found.class_names == tuple(map(str, np.unique(labels)))
    assert found.dim == DIM


REFUSED: dict[str, Callable[[], Any]] = {
    "one class against the rest": lambda: OneVsRestClassifier(logistic()).fit(X, THREE),
    "the same, by the loss": lambda: SGDClassifier(loss="log_loss").fit(X, THREE),
    "other probabilities": lambda: SGDClassifier(loss="modified_huber").fit(X, TWO),
    "no probabilities": lambda: RidgeClassifier().fit(X, TWO),
    "calibrated": lambda: CalibratedClassifierCV(logistic(), cv=2).fit(X, TWO),
    "kernel": lambda: SVC().fit(X, TWO),
    "tree": lambda: DecisionTreeClassifier().fit(X, TWO),
    "Bayes": lambda: GaussianNB().fit(X, TWO),
    "rows normalised": lambda: make_pipeline(Normalizer(), logistic()).fit(X, TWO),
    "clipped": lambda: make_pipeline(MinMaxScaler(clip=True), logistic()).fit(X, TWO),
    "columns in another order": lambda: logistic().fit(TABLE[sorted(TABLE, reverse=True)], TWO),
    "the same, before a scaler": lambda: make_pipeline(StandardScaler(), logistic()).fit(
        TABLE[TABLE.columns[::-1]], TWO
    ),
    "an empty name of a class": lambda: logistic().fit(X, np.where(TWO == "ill", "ill", "")),
    "a blank name of a class": lambda: logistic().fit(X, np.where(TWO == "ill", "ill", " ")),
    "a name of two lines": lambda: logistic().fit(X, np.where(TWO == "ill", "very\nill", "healthy")),
    "a name with a line end": lambda: logistic().fit(X, np.where(TWO == "ill", "ill\r", "healthy")),
    "a name of two lines, of a head": lambda: HeadClassifier(epochs=1).fit(X, np.where(TWO == "ill", "a\u2028b", "c")),
    "a search without its best": lambda: GridSearchCV(logistic(), {"C": [1]}, cv=2, refit=False).fit(X, TWO),
    "not fitted": logistic,
    "pipeline, not fitted": lambda: make_pipeline(StandardScaler(), logistic()),
    "a scaler": lambda: StandardScaler().fit(X),
    "a class": lambda: LogisticRegression,
    "None": lambda: None,
    "a text": lambda: "model",
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_softmax_of_a_linear_function_is_refused(kind: str) -> None:
    with pytest.raises(XfeatError) as refused:
        classifier_head(REFUSED[kind]())
    assert isinstance(refused.value, ValueError | TypeError)


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
def test_the_columns_of_a_cache_in_their_own_order_are_taken() -> None:
    assert classifier_head(logistic().fit(TABLE, TWO)).dim == DIM
