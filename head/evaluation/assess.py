"""From logits to everything that is said of them: temperature, metrics, operating point. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from xfeat.featurize.datasets.layouts import SPLITS
from xfeat.head.evaluation.calibration import fit_temperature
from xfeat.head.evaluation.metrics import classification_metrics
from xfeat.head.evaluation.operating_point import operating_point
from xfeat.head.evaluation.predictions import Predictions
from xfeat.head.specs import TargetSpec

CALIBRATION_FIGURES = ("loss", "ece", "brier")


@dataclass(frozen=True)
class Assessment:
    """What predictions are worth.

    Attributes:
        predictions: with the temperature and the threshold that were chosen.
        metrics: part to :func:`xfeat.head.evaluation.metrics.classification_metrics`, after the temperature.
        calibration: ``temperature``, ``note``, and ``before`` and ``after``: part to ``loss``, ``ece``, ``brier``.
        operating_point: see :func:`xfeat.head.evaluation.operating_point.operating_point`, or ``None``.
    """

    predictions: Predictions
    metrics: dict[str, Any]
    calibration: dict[str, Any]
    operating_point: dict[str, Any] | None

    @property
    def facts(self) -> dict[str, Any]:
        """Return what run.json holds of it."""
        return {
            "metrics": self.metrics,
            "temperature": self.predictions.temperature,
            "calibration": self.calibration,
            "operating_point": self.operating_point,
        }


def assess(
    predictions: Predictions, class_names: tuple[str, ...], *, target: TargetSpec | None = None, calibrate: bool = True
) -> Assessment:
    """Fit the temperature and the threshold on the validation rows; measure all parts.

    Args:
        predictions: of all parts, with the head's logits.
        class_names: C names.
        target: what is asked of the operating point, if one is wanted.
        calibrate: fit a temperature; else it is 1.

    Raises:
        DataError: if the operating point cannot be chosen.
    """
    valid = predictions.part("valid")
    temperature, note = fit_temperature(valid.labels, valid.logits) if calibrate else (1.0, "not asked for")
    before = _metrics(predictions, class_names)
    predictions = replace(predictions, temperature=temperature)
    after = _metrics(predictions, class_names)
    point = operating_point(predictions, class_names, target) if target is not None else None
    if point is not None:
        positive = class_names.index(point["positive"])
        predictions = replace(predictions, positive=positive, threshold=point["threshold"])
    calibration = {
        "temperature": temperature,
        "note": note,
        "before": _select(before),
        "after": _select(after),
    }
    return Assessment(predictions, after, calibration, point)


def _metrics(predictions: Predictions, class_names: tuple[str, ...]) -> dict[str, Any]:
    return {
        name: classification_metrics(part.labels, part.probabilities, class_names)
        for name in SPLITS
        if len(part := predictions.part(name))
    }


def _select(metrics: dict[str, Any]) -> dict[str, Any]:
    return {part: {name: row[name] for name in CALIBRATION_FIGURES} for part, row in metrics.items()}
