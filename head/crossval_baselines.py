"""scikit-learn's classifiers on the folds of a cross-validation, to hold heads against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from head.compare_baselines import LOGISTIC, SVM
from head.crossval import CrossValidation, OutOfFold
from head.intervals import grouped_interval
from head.rows import labelled_rows


def fold_baselines(
    result: CrossValidation, *, seed: int, progress: Callable[[int, int], None] | None = None
) -> list[dict[str, Any]]:
    """Fit logistic regression and an SVM, at their defaults and on standardised features, outside each fold.

    They need nothing to choose an epoch by, and learn from every image outside the fold.

    Args:
        result: whose images and folds are used, with whole groups in one fold.
        seed: of the intervals.
        progress: called with classifiers fitted and classifiers to fit.

    Returns:
        For each ``name``, ``accuracy`` (see :meth:`head.crossval.OutOfFold.accuracy`), and ``difference``: the heads'
        accuracy less this one's, over all images and seeds, and its 95 % ``interval`` by drawing whole groups.

    Raises:
        CacheError: if features are not finite.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    features = labelled_rows(result.cache, result.rows).clean.numpy()
    heads, done = result.main, 0
    kinds: dict[str, Callable[[], Any]] = {LOGISTIC: lambda: LogisticRegression(max_iter=2000), SVM: SVC}
    total = len(kinds) * sum(len(np.unique(fold)) for fold in heads.fold)
    found = []
    for name, make in kinds.items():
        decided = np.zeros_like(heads.probabilities)
        for place, fold in enumerate(heads.fold):
            for number in np.unique(fold):
                test = fold == number
                model = make_pipeline(StandardScaler(), make()).fit(features[~test], heads.labels[~test])
                decided[place, np.flatnonzero(test), model.predict(features[test])] = 1
                done += 1
                if progress is not None:
                    progress(done, total)
        answers = OutOfFold(heads.labels, decided, heads.fold, heads.groups)
        better = heads.correct.mean(axis=0) - answers.correct.mean(axis=0)
        difference = {
            "accuracy": float(better.mean()),
            "interval": grouped_interval(better, heads.groups, seed=seed),
        }
        found.append({"name": name, "accuracy": answers.accuracy(seed=seed), "difference": difference})
    return found
