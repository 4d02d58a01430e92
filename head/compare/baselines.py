"""scikit-learn's classifiers with tuned settings on the cache and split of a run, to compare heads with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.cache.rows import read_rows
from xfeat.featurize.errors import RunError
from xfeat.head.compare.comparison import Entry
from xfeat.head.data.pooling import pooled
from xfeat.head.evaluation.clustered import proportion_of
from xfeat.head.evaluation.metrics import mean_auc
from xfeat.head.runs.inputs import open_same_cache
from xfeat.head.runs.reader import Run
from xfeat.head.specs import LOGISTIC, SVM

# The penalty is tuned on the validation images, like the epoch of a head.
PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)

Part = tuple[list[str], NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]
"""Paths, features (n, D), labels (n,) and patients (n,) of a split."""


def fit_baselines(entries: Sequence[Entry], part: str) -> list[Entry]:
    """Fit logistic regression and an SVM to the training images of a run, tuned on its validation images.

    Args:
        entries: cache, split and classes of the first run with predictions are used.
        part: the split to compare on.

    Raises:
        RunError: if no run has predictions.
        CacheError: if the run's cache is missing, or its features are not finite.
        MismatchError: if the cache has changed since.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import SVC

    run = next((entry.run for entry in entries if entry.run is not None and not entry.problem), None)
    if run is None:
        raise RunError(
            "no run has readable predictions, which --baselines needs",
            expected="a predictions.csv in at least one run folder",
            fix="train a run again with xhead train",
        )
    parts = _parts(run)
    models = {
        LOGISTIC: lambda penalty: LogisticRegression(C=penalty, max_iter=2000),
        SVM: lambda penalty: SVC(C=penalty * 10, decision_function_shape="ovr"),
    }
    return [_entry(name, make, parts, run, part) for name, make in models.items()]


def _entry(name: str, make: Any, parts: dict[str, Part], run: Run, part: str) -> Entry:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    _, features, labels, _ = parts["train"]
    fitted = [make_pipeline(StandardScaler(), make(penalty)).fit(features, labels) for penalty in PENALTIES]
    valid = parts["valid"]
    scores = [model.score(valid[1], valid[2]) for model in fitted]
    best = int(np.argmax(scores))  # ties: the strongest penalty
    model, penalty = fitted[best], fitted[best][-1].C
    names = run.class_names
    paths, features, truth, _ = parts[part]
    predicted = model.predict(features)
    return Entry(
        name=name,
        settings={"C": penalty},
        metrics={key: _metrics(model, *parts[key][1:]) for key in parts if key != "train"},
        predictions={
            path: (names[label], names[code]) for path, label, code in zip(paths, truth, predicted, strict=True)
        },
    )


def _metrics(
    model: Any, features: NDArray[np.float32], labels: NDArray[np.int64], patients: NDArray[np.int64]
) -> dict[str, Any]:
    from sklearn.metrics import balanced_accuracy_score

    predicted = model.predict(features)
    scores = model.decision_function(features)
    accuracy = proportion_of(predicted == labels, np.ones(len(labels), bool), patients).to_dict()
    return {
        "images": len(labels),
        "accuracy": accuracy["value"],
        "accuracy_interval": accuracy["interval"],
        "balanced_accuracy": float(balanced_accuracy_score(labels, predicted)),
        "auc": mean_auc(labels, scores if scores.ndim == 2 else np.stack([-scores, scores], 1)),
        "loss": None,  # an SVM has no probabilities
    }


def _parts(run: Run) -> dict[str, Part]:
    cache = pooled(open_same_cache(run), run.feature_spec.pooling)
    row_of = {path: row for row, path in enumerate(cache.columns.path)}
    rows: dict[str, list[int]] = {}
    try:
        for line in run.predictions():
            rows.setdefault(line["split"], []).append(row_of[line["path"]])
    except KeyError as error:
        raise RunError(
            "the predictions of the run and its cache are of different images",
            path=run.folder,
            found=f"{error} is not in {cache.path}",
            fix="train the run again, or compare without --baselines",
        ) from error
    return {part: _read_part(cache, np.array(numbers, np.int64)) for part, numbers in rows.items()}


def _read_part(cache: FeatureCache, rows: NDArray[np.int64]) -> Part:
    features = read_rows(cache, rows, views=0).astype(np.float32, copy=False)
    paths = [cache.columns.path[row] for row in rows]
    groups = [cache.columns.group[row] or path for row, path in zip(rows, paths, strict=True)]
    patients = np.unique(groups, return_inverse=True)[1].astype(np.int64)
    return paths, features, np.asarray(cache.columns.label)[rows].astype(np.int64), patients
