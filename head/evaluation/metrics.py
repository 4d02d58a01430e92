"""What predictions are worth, through scikit-learn. Arrays in, plain numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfeat.head.evaluation.calibration import expected_calibration_error
from xfeat.head.evaluation.intervals import wilson_interval

Labels = NDArray[np.integer]
Probabilities = NDArray[np.floating]


def classification_metrics(labels: Labels, probabilities: Probabilities, class_names: Sequence[str]) -> dict[str, Any]:
    """Describe predictions by the most probable class.

    Args:
        labels: true classes (n,), indices into ``class_names``.
        probabilities: (n, C), rows adding up to 1.
        class_names: C names.

    Returns:
        ``images``, ``accuracy``, ``accuracy_interval`` (Wilson, 95 %), ``balanced_accuracy`` (over the classes that are
        present), ``loss`` (mean cross entropy), ``auc`` (binary, or the mean of one against the rest; ``None`` if a
        class is absent), ``ece``, ``brier`` (squared distance over all classes), ``confusion_matrix`` (rows true,
        columns predicted), ``classes``: per class ``images``, ``sensitivity``, ``specificity``, ``ppv``, ``npv``,
        ``auc``.
    """
    from sklearn.metrics import accuracy_score, brier_score_loss, confusion_matrix, log_loss

    every = np.arange(len(class_names))
    predicted = probabilities.argmax(axis=1)
    matrix = confusion_matrix(labels, predicted, labels=every)
    per_class = {name: _one_against_rest(matrix, code, labels, probabilities) for code, name in enumerate(class_names)}
    sensitivities = [row["sensitivity"] for row in per_class.values() if row["sensitivity"] is not None]
    exact = _renormalized(probabilities)
    return {
        "images": len(labels),
        "accuracy": float(accuracy_score(labels, predicted)),
        "accuracy_interval": wilson_interval(int(matrix.trace()), len(labels)),
        "balanced_accuracy": float(np.mean(sensitivities)),
        "loss": float(log_loss(labels, exact, labels=every)),
        "auc": _overall_auc(per_class),
        "ece": expected_calibration_error(labels, exact),
        # Twice the binary Brier score for two classes, so that it compares between numbers of classes.
        "brier": float(brier_score_loss(labels, exact, labels=every, scale_by_half=False)),
        "confusion_matrix": matrix.tolist(),
        "classes": per_class,
    }


def _one_against_rest(
    matrix: NDArray[np.integer], code: int, labels: Labels, probabilities: Probabilities
) -> dict[str, Any]:
    true_positive = int(matrix[code, code])
    false_negative = int(matrix[code].sum()) - true_positive
    false_positive = int(matrix[:, code].sum()) - true_positive
    true_negative = int(matrix.sum()) - true_positive - false_negative - false_positive
    return {
        "images": true_positive + false_negative,
        "sensitivity": ratio(true_positive, true_positive + false_negative),
        "specificity": ratio(true_negative, true_negative + false_positive),
        "ppv": ratio(true_positive, true_positive + false_positive),
        "npv": ratio(true_negative, true_negative + false_negative),
        "auc": _auc(labels == code, probabilities[:, code]),
    }


def _auc(positive: NDArray[np.bool_], scores: Probabilities) -> float | None:
    from sklearn.metrics import roc_auc_score

    if positive.all() or not positive.any():
        return None
    return float(roc_auc_score(positive, scores))


def _overall_auc(per_class: dict[str, dict[str, Any]]) -> float | None:
    # With two classes both values are the same, so that the mean is the binary AUC.
    values = [row["auc"] for row in per_class.values()]
    return float(np.mean(values)) if None not in values else None


def ratio(part: int, whole: int) -> float | None:
    """Return the share of ``part`` in ``whole``, ``None`` of nothing."""
    return part / whole if whole else None


def _renormalized(probabilities: Probabilities) -> NDArray[np.float64]:
    # scikit-learn wants rows that add up to exactly 1
    wide = probabilities.astype(np.float64)
    result: NDArray[np.float64] = wide / wide.sum(axis=1, keepdims=True)
    return result
