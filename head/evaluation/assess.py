"""From logits to temperature, metrics and operating point. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypedDict

from xfeat.featurize.datasets.layouts import SPLITS
from xfeat.head.evaluation.calibration import fit_temperature
from xfeat.head.evaluation.metrics import Metrics, classification_metrics
from xfeat.head.evaluation.operating_point import OperatingPoint, choose_operating_point
from xfeat.head.evaluation.predictions import Predictions
from xfeat.head.specs import TargetSpec


class Calibration(TypedDict):
    """A temperature, why it is 1, or empty, and ``loss``, ``ece`` and ``brier`` of each split before and after it."""

    temperature: float
    note: str
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
    predictions: Predictions, class_names: tuple[str, ...], *, target: TargetSpec | None = None, calibrate: bool = True
) -> Assessment:
    """Fit the temperature and choose the threshold on the validation rows; measure all splits.

    Raises:
        DataError: if the operating point cannot be chosen.
    """
    valid = predictions.part("valid")
    temperature, note = fit_temperature(valid.labels, valid.logits) if calibrate else (1.0, "calibration is off")
    before = _metrics(predictions, class_names)
    predictions = replace(predictions, temperature=temperature)
    after = _metrics(predictions, class_names)
    point = choose_operating_point(predictions, class_names, target) if target is not None else None
    if point is not None:
        predictions = replace(predictions, positive=class_names.index(point.positive), threshold=point.threshold)
    calibration = Calibration(temperature=temperature, note=note, before=_select(before), after=_select(after))
    return Assessment(predictions, after, calibration, point)


def _metrics(predictions: Predictions, class_names: tuple[str, ...]) -> dict[str, Metrics]:
    return {
        name: classification_metrics(part.labels, part.probabilities, class_names)
        for name in SPLITS
        if len(part := predictions.part(name))
    }


def _select(metrics: dict[str, Metrics]) -> dict[str, dict[str, float]]:
    return {part: {"loss": row["loss"], "ece": row["ece"], "brier": row["brier"]} for part, row in metrics.items()}
