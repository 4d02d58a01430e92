"""scikit-learn's classifiers on the folds of a cross-validation, to hold heads against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.cache.rows import read_rows
from xfeat.featurize.datasets.layouts import NO_LABEL
from xfeat.featurize.errors import DataError
from xfeat.head.compare.baselines import LOGISTIC, SVM
from xfeat.head.crossval.out_of_fold import OutOfFold
from xfeat.head.crossval.runner import CrossValidation
from xfeat.head.evaluation.intervals import grouped_interval
from xfeat.head.specs import CrossvalSpec, MemorySpec

# Bytes a feature of a training row: float32, and the float64 that libsvm copies it to.
_BYTES = 4 + 8
_TESTED_AT_ONCE = 4096


def check_memory(cache: FeatureCache, plan: CrossvalSpec, memory: MemorySpec) -> None:
    """Find out whether the training rows of a fold may be in memory, which these classifiers need.

    Raises:
        DataError: if they take more than is allowed.
    """
    rows = int((np.asarray(cache.columns.label) != NO_LABEL).sum())
    needed_mb = (rows - rows // plan.folds) * cache.features.shape[-1] * _BYTES / 1e6
    if needed_mb > memory.memory_mb:
        raise DataError(
            "the baselines need all training images of a fold in memory, and those are too many",
            path=cache.path,
            expected=f"at most {memory.memory_mb:g} MB",
            found=f"{needed_mb:.0f} MB",
            fix=f"leave out --baselines, or allow as much with --memory-mb {needed_mb + 1:.0f}",
        )


def fold_baselines(
    result: CrossValidation, *, seed: int, progress: Callable[[int, int], None] | None = None
) -> list[dict[str, Any]]:
    """Fit logistic regression and an SVM, at their defaults and on standardised features, outside each fold.

    They need nothing to choose an epoch by, and learn from the unchanged images, all that are outside the fold.

    Args:
        result: whose images and folds are used, with whole groups in one fold.
        seed: of the intervals.
        progress: called with classifiers fitted and classifiers to fit.

    Returns:
        For each ``name``, ``accuracy`` (see :meth:`xfeat.head.crossval.runner.OutOfFold.accuracy`), and ``difference``:
        the heads' accuracy less this one's, over all images and seeds, and its 95 % ``interval`` by drawing whole
        groups.

    Raises:
        CacheError: if features are not finite.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    heads = result.main
    kinds: dict[str, Callable[[], Any]] = {LOGISTIC: lambda: LogisticRegression(max_iter=2000), SVM: SVC}
    decided = {name: np.zeros_like(heads.probabilities) for name in kinds}
    folds = [(place, number) for place, fold in enumerate(heads.fold) for number in np.unique(fold)]
    done = 0
    for place, number in folds:
        tested = heads.fold[place] == number
        train, test = np.flatnonzero(~tested), np.flatnonzero(tested)
        scaler = StandardScaler(copy=False)
        features = scaler.fit_transform(_features(result, train))
        for name, make in kinds.items():
            model = make().fit(features, heads.labels[train])
            for part in np.array_split(test, -(-len(test) // _TESTED_AT_ONCE)):
                decided[name][place, part, model.predict(scaler.transform(_features(result, part)))] = 1
            done += 1
            if progress is not None:
                progress(done, len(folds) * len(kinds))
    return [_against(heads, name, replace(heads, probabilities=answers), seed) for name, answers in decided.items()]


def _against(heads: OutOfFold, name: str, answers: OutOfFold, seed: int) -> dict[str, Any]:
    better = heads.correct.mean(axis=0) - answers.correct.mean(axis=0)
    difference = {"accuracy": float(better.mean()), "interval": grouped_interval(better, heads.groups, seed=seed)}
    return {"name": name, "accuracy": answers.accuracy(seed=seed), "difference": difference}


def _features(result: CrossValidation, places: NDArray[np.int64]) -> NDArray[np.float32]:
    """Copy the clean view of some of the images that took part."""
    return read_rows(result.cache, result.rows[places], views=0).astype(np.float32, copy=False)
