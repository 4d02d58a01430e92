"""scikit-learn's classifiers with default settings on the folds of a cross-validation, to compare heads with."""

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
from xfeat.head.crossval.runner import CrossValidation
from xfeat.head.evaluation.intervals import grouped_interval
from xfeat.head.specs import LOGISTIC, SVM, CrossvalSpec, MemorySpec

# Per feature of a training row: float32, and the float64 copy that libsvm makes.
_BYTES_PER_FEATURE = 4 + 8
_PREDICT_ROWS = 4096


def check_memory(cache: FeatureCache, plan: CrossvalSpec, memory: MemorySpec) -> None:
    """Check that the training rows of a fold fit into memory, as these classifiers require.

    Raises:
        DataError: if they need more than is allowed.
    """
    rows = int((np.asarray(cache.columns.label) != NO_LABEL).sum())
    needed_mb = (rows - rows // plan.folds) * cache.features.shape[-1] * _BYTES_PER_FEATURE / 1e6
    if needed_mb > memory.memory_mb:
        raise DataError(
            "the training features of one fold do not fit into memory, as --baselines requires",
            path=cache.path,
            expected=f"at most {memory.memory_mb:g} MB",
            found=f"{needed_mb:.0f} MB",
            fix=f"leave out --baselines, or allow more memory with --memory-mb {needed_mb + 1:.0f}",
        )


def cross_validate_baselines(
    result: CrossValidation, progress: Callable[[int, int], None] | None = None
) -> list[dict[str, Any]]:
    """Fit logistic regression and an SVM with default settings, on standardised features, for each fold.

    They are fitted on all images outside the fold (the clean view), since they need no validation images.

    Args:
        result: its images and grouped folds are used.
        progress: called with the number of fitted classifiers and the total.

    Returns:
        For each baseline ``name``, ``accuracy`` (see :meth:`xfeat.head.crossval.out_of_fold.OutOfFold.accuracy`), and
        ``difference``: the accuracy of the heads minus that of the baseline, over all images and seeds, with its 95 %
        ``interval`` from a bootstrap over groups.

    Raises:
        CacheError: if features are not finite.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    heads = result.main
    kinds: dict[str, Callable[[], Any]] = {LOGISTIC: lambda: LogisticRegression(max_iter=2000), SVM: SVC}
    predicted = {name: np.zeros_like(heads.probabilities) for name in kinds}  # one-hot
    folds, done = list(heads.tested), 0
    for seed_number, _, tested in folds:
        train, test = np.flatnonzero(~tested), np.flatnonzero(tested)
        scaler = StandardScaler(copy=False)
        features = scaler.fit_transform(_features(result, train))
        for name, make in kinds.items():
            model = make().fit(features, heads.labels[train])
            for part in np.array_split(test, -(-len(test) // _PREDICT_ROWS)):
                predicted[name][seed_number, part, model.predict(scaler.transform(_features(result, part)))] = 1
            done += 1
            if progress is not None:
                progress(done, len(folds) * len(kinds))
    compared, seed = [], result.train.seed
    for name, onehot in predicted.items():
        baseline = replace(heads, probabilities=onehot)
        better = heads.correct.mean(axis=0) - baseline.correct.mean(axis=0)
        difference = {"accuracy": float(better.mean()), "interval": grouped_interval(better, heads.groups, seed=seed)}
        compared.append({"name": name, "accuracy": baseline.accuracy(seed=seed), "difference": difference})
    return compared


def _features(result: CrossValidation, places: NDArray[np.int64]) -> NDArray[np.float32]:
    return read_rows(result.cache, result.rows[places], views=0).astype(np.float32, copy=False)
