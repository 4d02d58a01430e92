"""Metrics of predictions: arrays in, plain numbers out. Needs numpy alone, as ``xserve eval`` does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from xfeat.head.evaluation.intervals import wilson_interval

_CALIBRATION_BINS = 15

Labels = NDArray[np.integer]
Probabilities = NDArray[np.floating]


class Metrics(TypedDict):
    """The metrics of the most probable classes, as run.json stores them.

    Attributes:
        accuracy_interval: Wilson's 95 % interval.
        balanced_accuracy: over the classes that are present.
        loss: mean cross entropy.
        auc: binary, or the one-vs-rest mean; ``None`` if a class is absent.
        brier: sum of the squared errors over all classes.
        confusion_matrix: rows are true classes, columns predicted ones.
        classes: per class ``images``, ``sensitivity``, ``specificity``, ``ppv``, ``npv`` and ``auc``.
    """

    images: int
    accuracy: float
    accuracy_interval: tuple[float, float] | None
    balanced_accuracy: float
    loss: float
    auc: float | None
    ece: float
    brier: float
    confusion_matrix: list[list[int]]
    classes: dict[str, dict[str, float | None]]


class ConfusionCounts(NamedTuple):
    """How often a binary decision is right and wrong."""

    true_positive: int
    false_negative: int
    false_positive: int
    true_negative: int

    @property
    def rates(self) -> dict[str, tuple[int, int]]:
        """``sensitivity``, ``specificity``, ``ppv`` and ``npv``, each as successes and trials."""
        tp, fn, fp, tn = self
        return {"sensitivity": (tp, tp + fn), "specificity": (tn, tn + fp), "ppv": (tp, tp + fp), "npv": (tn, tn + fn)}


def confusion_counts(positive: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> ConfusionCounts:
    """Count the decisions ``predicted`` about the truth ``positive``, both bool (n,)."""
    tp, fp = int((predicted & positive).sum()), int((predicted & ~positive).sum())
    return ConfusionCounts(tp, int(positive.sum()) - tp, fp, int((~positive).sum()) - fp)


def classification_metrics(labels: Labels, probabilities: Probabilities, class_names: Sequence[str]) -> Metrics:
    """Measure predictions; the predicted class is the most probable one.

    Args:
        labels: true classes (n,), indices into ``class_names``.
        probabilities: (n, C), each row sums to 1.
        class_names: C names.
    """
    predicted = probabilities.argmax(axis=1)
    matrix = confusion_matrix(labels, predicted, len(class_names))
    true = np.eye(len(class_names))[labels]
    per_class = {
        name: _one_vs_rest(labels == code, predicted == code, probabilities[:, code])
        for code, name in enumerate(class_names)
    }
    sensitivities = [row["sensitivity"] for row in per_class.values() if row["sensitivity"] is not None]
    exact = probabilities.astype(np.float64)
    exact /= exact.sum(axis=1, keepdims=True)
    of_label = np.maximum(exact[np.arange(len(labels)), labels], np.finfo(np.float64).eps)
    return {
        "images": len(labels),
        "accuracy": float((predicted == labels).mean()),
        "accuracy_interval": wilson_interval(int(matrix.trace()), len(labels)),
        "balanced_accuracy": float(np.mean(sensitivities)),
        "loss": float(-np.log(of_label).mean()),
        "auc": mean_auc(labels, probabilities),
        "ece": expected_calibration_error(labels, exact),
        # For two classes twice the binary Brier score, so that it is comparable between numbers of classes.
        "brier": float(((exact - true) ** 2).sum(axis=1).mean()),
        "confusion_matrix": matrix.tolist(),
        "classes": per_class,
    }


def confusion_matrix(labels: Labels, predicted: Labels, classes: int) -> NDArray[np.int64]:
    """Count predictions: int64 (classes, classes), rows are true classes, columns predicted ones."""
    matrix: NDArray[np.int64] = np.bincount(labels * classes + predicted, minlength=classes**2).reshape(
        classes, classes
    )
    return matrix


def _one_vs_rest(
    positive: NDArray[np.bool_], predicted: NDArray[np.bool_], scores: Probabilities
) -> dict[str, float | None]:
    rates = confusion_counts(positive, predicted).rates
    return {
        "images": int(positive.sum()),
        **{name: successes / trials if trials else None for name, (successes, trials) in rates.items()},
        "auc": _auc(positive, scores),
    }


def _auc(positive: NDArray[np.bool_], scores: Probabilities) -> float | None:
    """Return the share of pairs of a positive and a negative in which the positive has the higher score.

    Pairs with equal scores count half. This is the area under the ROC curve.
    """
    if positive.all() or not positive.any():
        return None
    values, places = np.unique(scores, return_inverse=True)
    positives, negatives = (np.bincount(places[part], minlength=len(values)) for part in (positive, ~positive))
    lower = np.cumsum(negatives) - negatives / 2
    return float((positives * lower).sum() / (positives.sum() * negatives.sum()))


def mean_auc(labels: Labels, scores: Probabilities) -> float | None:
    """Return the mean one-vs-rest AUC of scores (n, C), or ``None`` if a class is absent.

    With two classes both values are equal, so that their mean is the binary AUC.
    """
    areas = [_auc(labels == code, scores[:, code]) for code in range(scores.shape[1])]
    return None if None in areas else float(np.mean(areas))  # type: ignore[arg-type]


def expected_calibration_error(labels: Labels, probabilities: NDArray[np.floating]) -> float:
    """Return the mean gap between confidence and accuracy, 0 to 1, over bins of equal width.

    Args:
        labels: true classes (n,).
        probabilities: (n, C); the highest of each row is its confidence.

    Source:
        Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", 2015; 15 bins as in Guo et al.
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    # A confidence on the edge of two bins belongs to the lower one.
    places = np.clip(np.ceil(confidence * _CALIBRATION_BINS).astype(int) - 1, 0, _CALIBRATION_BINS - 1)
    gaps = np.abs(np.bincount(places, weights=correct - confidence.astype(np.float64), minlength=_CALIBRATION_BINS))
    return float(gaps.sum() / len(labels))
