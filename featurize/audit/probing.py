"""Cross-validated linear models (probes), with no group in both training and test."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.audit.findings import Probe
from xfeat.featurize.audit.neighbours import SHORT_DIM
from xfeat.featurize.audit.thresholds import THRESHOLDS

_FOLDS = 5
# Groups per class; with fewer, an AUC is not meaningful.
MIN_GROUPS = 5
# Of float32, as a share of the largest singular value.
_ROUNDING = 1e-5

Labels = NDArray[np.integer]


def has_enough_groups(labels: Labels, groups: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mark the rows of classes that have enough groups to be predicted out of fold.

    Args:
        labels: (n,), -1 for none.
        groups: (n,), equal for rows of one group.

    Returns:
        bool (n,); all false if fewer than two classes have enough groups.
    """
    good = [code for code in np.unique(labels[labels >= 0]) if len(np.unique(groups[labels == code])) >= MIN_GROUPS]
    return np.isin(labels, good) if len(good) > 1 else np.zeros(len(labels), np.bool_)


def out_of_fold(
    values: NDArray[np.floating], labels: Labels, groups: NDArray[np.int64], *, balanced: bool
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Predict each row by a logistic regression that was trained without its group.

    Args:
        values: (n, d).
        labels: (n,), 0 to C - 1, each with at least ``MIN_GROUPS`` groups.
        groups: (n,).
        balanced: give all classes the same weight.

    Returns:
        Probabilities, float64 (n, C); fold, int64 (n,).
    """
    from sklearn.decomposition import PCA
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    classes = int(labels.max()) + 1
    probabilities = np.full((len(labels), classes), 1 / classes)
    folds = np.zeros(len(labels), np.int64)
    # A class that is missing from the training rows of a fold gets probability 0 there.
    splitter = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=THRESHOLDS.seed)
    for number, (known, asked) in enumerate(splitter.split(values, labels, groups)):
        folds[asked] = number
        if len(np.unique(labels[known])) < 2:
            continue  # nothing to learn from: the probabilities stay equal
        regression = LogisticRegression(C=0.1, max_iter=500, class_weight="balanced" if balanced else None)
        model, given = make_pipeline(StandardScaler(), regression), values
        # These matrices are small: one thread is faster, as several wait for each other on busy cores.
        # If nothing varies (all borders are black), PCA divides 0 by 0 for a value that is not used.
        with threadpool_limits(1), np.errstate(invalid="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # an approximate optimum is enough here
            if values.shape[1] > SHORT_DIM:
                dim = min(SHORT_DIM, len(known) // 2)
                shorten = PCA(dim, svd_solver="randomized", random_state=THRESHOLDS.seed).fit(values[known])
                # Where less varies (plain frames), the last components are rounding errors; scaling would enlarge them.
                varies = shorten.singular_values_ >= _ROUNDING * shorten.singular_values_[0]
                given = shorten.transform(values)[:, varies]
            model.fit(given[known], labels[known])
        probabilities[asked] = 0
        probabilities[np.ix_(asked, model.classes_)] = model.predict_proba(given[asked])
    return probabilities, folds


def score(
    name: str,
    what: str,
    labels: Labels,
    class_names: list[str],
    predicted: tuple[NDArray[np.float64], NDArray[np.int64]],
) -> Probe:
    """Measure what :func:`out_of_fold` returned for labels (n,), 0 to C - 1; ``what`` was given to the probe."""
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score

    probabilities, folds = predicted
    # With two classes both AUCs are equal: report that of the rarer class.
    codes = range(len(class_names)) if len(class_names) > 2 else [int(np.argmin(np.bincount(labels, minlength=2)))]
    auc = {class_names[code]: float(roc_auc_score(labels == code, probabilities[:, code])) for code in codes}
    best = class_names.index(max(auc, key=lambda key: auc[key]))
    of_folds = [
        roc_auc_score(labels[rows] == best, probabilities[rows, best])
        for fold in np.unique(folds)
        if len(np.unique(labels[rows := folds == fold] == best)) == 2
    ]
    return Probe(
        name=name,
        what=what,
        auc=auc,
        standard_error=float(np.std(of_folds, ddof=1) / np.sqrt(len(of_folds))) if len(of_folds) > 1 else 0.5,
        balanced_accuracy=float(balanced_accuracy_score(labels, probabilities.argmax(axis=1))),
        chance_balanced_accuracy=1 / len(class_names),
        images=len(labels),
    )
