"""Calibration of probabilities: temperature scaling and the calibration error. Arrays in, numbers out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Limits of the search; a result at a limit is not used.
_LOWEST, _HIGHEST = 0.1, 10.0
_MIN_ROWS = 30
_BINS = 15

Labels = NDArray[np.integer]


def fit_temperature(labels: Labels, logits: NDArray[np.floating]) -> tuple[float, str]:
    """Find the temperature with the lowest cross entropy.

    The targets are smoothed by Platt's prior, by 1 / (n + 2) for n rows of two classes, instead of 0 and 1. Otherwise
    a hundred rows with one mistake or none would give the lowest possible temperature; see docs/decisions/0032.

    Args:
        labels: true classes (n,).
        logits: (n, C), of rows that the head was not trained on.

    Returns:
        The temperature, and why it was not fitted and is 1, or an empty text.

    Source:
        Guo et al., "On Calibration of Modern Neural Networks", 2017, section 4.2; Platt, "Probabilistic Outputs for
        Support Vector Machines", 1999, section 2.2.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    if len(labels) < _MIN_ROWS:
        return 1.0, f"not fitted: {len(labels)} validation images are fewer than {_MIN_ROWS}"
    if len(np.unique(labels)) < 2:
        return 1.0, "not fitted: all validation images are of one class"
    spread = 2 / (len(labels) + 2)

    def cross_entropy(log_temperature: float) -> float:
        log_probabilities = log_softmax(logits.astype(np.float64) / np.exp(log_temperature), axis=1)
        true = log_probabilities[np.arange(len(labels)), labels]
        return float(-np.mean((1 - spread) * true + spread * log_probabilities.mean(axis=1)))

    bounds = (np.log(_LOWEST), np.log(_HIGHEST))
    found = minimize_scalar(cross_entropy, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    value = float(np.exp(found.x))
    if not _LOWEST * 1.01 < value < _HIGHEST / 1.01:
        return 1.0, f"not fitted: the best temperature is outside {_LOWEST} to {_HIGHEST}"
    return value, ""


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
    places = np.clip(np.ceil(confidence * _BINS).astype(int) - 1, 0, _BINS - 1)
    gaps = np.abs(np.bincount(places, weights=correct - confidence.astype(np.float64), minlength=_BINS))
    return float(gaps.sum() / len(labels))
