"""From logits to temperature, metrics and operating point. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.cache.extra import ExtraColumn
from xfeat.featurize.datasets.layouts import SPLITS
from xfeat.head.evaluation.metrics import Metrics, classification_metrics
from xfeat.head.evaluation.operating_point import (
    OUT_OF_FOLD,
    VALIDATION,
    ChosenThreshold,
    OperatingPoint,
    choose_operating_point,
)
from xfeat.head.evaluation.predictions import Predictions
from xfeat.head.evaluation.study import Study, cases_of, study
from xfeat.head.evaluation.subgroups import Bins, subgroup_figures
from xfeat.head.specs import TargetSpec

# Limits of the search for a temperature; a result at a limit is not used.
_LOWEST, _HIGHEST = 0.1, 10.0
_MIN_ROWS = 30


class Calibration(TypedDict):
    """A temperature, and ``loss``, ``ece`` and ``brier`` of each split before and after it.

    ``note`` says why the temperature is 1, or is empty; ``fitted_on`` is absent in runs of earlier versions.
    """

    temperature: float
    note: str
    fitted_on: NotRequired[str]
    before: dict[str, dict[str, float]]
    after: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Assessment:
    """All that is computed from the predictions of a head.

    Attributes:
        predictions: with the chosen temperature and threshold.
        metrics: of each split, with the temperature applied.
        calibration: what the temperature changed.
        operating_point: ``None`` if none was asked for.
    """

    predictions: Predictions
    metrics: dict[str, Metrics]
    calibration: Calibration
    operating_point: OperatingPoint | None


def assess(
    predictions: Predictions,
    class_names: tuple[str, ...],
    *,
    target: TargetSpec | ChosenThreshold | None = None,
    calibrate: bool = True,
) -> Assessment:
    """Fit the temperature on the validation rows, choose the threshold there or take a chosen one; measure all splits.

    Where the validation rows are too few for a temperature, that of the cross-validation which chose the threshold is
    taken: a threshold means the same only for probabilities that are calibrated alike.

    Raises:
        DataError: if the operating point cannot be chosen.
    """
    valid = predictions.part("valid")
    temperature, note = fit_temperature(valid.labels, valid.logits) if calibrate else (1.0, "calibration is off")
    fitted_on = VALIDATION
    wanted = target.point if isinstance(target, ChosenThreshold) else target
    if isinstance(target, ChosenThreshold) and note and target.temperature is not None:
        temperature, note, fitted_on = target.temperature, "", OUT_OF_FOLD
    before = _metrics(predictions, class_names)
    predictions = replace(predictions, temperature=temperature)
    after = _metrics(predictions, class_names)
    point = choose_operating_point(predictions, class_names, wanted) if wanted is not None else None
    if point is not None:
        predictions = replace(predictions, positive=class_names.index(point.positive), threshold=point.threshold)
    calibration = Calibration(
        temperature=temperature, note=note, fitted_on=fitted_on, before=_select(before), after=_select(after)
    )
    return Assessment(predictions, after, calibration, point)


def study_parts(
    predictions: Predictions,
    class_names: tuple[str, ...],
    columns: Mapping[str, ExtraColumn],
    rows: NDArray[np.int64],
    bins: Bins | None = None,
) -> tuple[dict[str, Study], dict[str, Any]]:
    """Study the validation and test rows, and the subgroups of the test rows, or of the validation rows without any.

    Args:
        predictions: of n rows, with the final temperature and threshold.
        class_names: of all classes.
        columns: further columns of the cache.
        rows: int64 (n,), the row of the cache of each prediction.
        bins: of numbers.

    Returns:
        The study of each part, see :func:`xfeat.head.evaluation.study.study`, and the figures of subgroups.
    """
    found: dict[str, Study] = {}
    subgroups: dict[str, Any] = {}
    for name in SPLITS[1:]:
        places = np.flatnonzero(np.array(predictions.split) == name)
        if len(places):
            cases = cases_of(predictions.part(name), class_names)
            found[name], subgroups = study(cases), subgroup_figures(cases, columns, rows[places], bins)
    return found, subgroups


def _metrics(predictions: Predictions, class_names: tuple[str, ...]) -> dict[str, Metrics]:
    return {
        name: classification_metrics(part.labels, part.probabilities, class_names)
        for name in SPLITS
        if len(part := predictions.part(name))
    }


def _select(metrics: dict[str, Metrics]) -> dict[str, dict[str, float]]:
    return {part: {"loss": row["loss"], "ece": row["ece"], "brier": row["brier"]} for part, row in metrics.items()}


def fit_temperature(labels: NDArray[np.integer], logits: NDArray[np.floating]) -> tuple[float, str]:
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
