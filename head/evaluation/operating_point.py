"""The operating point: the threshold above which an image is predicted positive, and what that costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self, TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.errors import DataError
from xfeat.featurize.text import listed
from xfeat.featurize.typed_json import check_types
from xfeat.head.evaluation.clustered import Estimate, Figure, proportion_of
from xfeat.head.evaluation.intervals import Z, ratio_interval
from xfeat.head.evaluation.metrics import confusion_counts
from xfeat.head.evaluation.predictions import Predictions
from xfeat.head.specs import TargetSpec

# From screening, where the disease is rare, to a clinic where every second patient has it.
PREVALENCES = (0.001, 0.01, 0.05, 0.1, 0.2, 0.5)
VALIDATION, OUT_OF_FOLD, GIVEN = "the validation images", "out-of-fold predictions of all images", "a given number"


class ThresholdMetrics(TypedDict):
    """What a threshold does to the images of a split: the four confusion counts, and four proportions."""

    true_positive: int
    false_negative: int
    false_positive: int
    true_negative: int
    sensitivity: Figure
    specificity: Figure
    ppv: Figure
    npv: Figure


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """The threshold of a run, as run.json stores it.

    Attributes:
        positive: the class that the threshold is for.
        target_sensitivity: what was asked for.
        threshold: probability of ``positive`` from which it is predicted.
        chosen_on: what the threshold was chosen on, such as ``the validation images``.
        supported: whether the confidence interval of the sensitivity on these images lies above the target.
        note: why it is not supported, or empty.
        out_of_fold: the threshold on the images of the cross-validation that chose it; see :func:`threshold_metrics`.
        valid: the same on the validation images.
        test: the same on the test images, if there are any.
        prevalences: :func:`predictive_values` at each of :data:`PREVALENCES`.
    """

    positive: str
    target_sensitivity: float | None = None
    threshold: float
    chosen_on: str = VALIDATION
    supported: bool = False
    note: str = ""
    out_of_fold: ThresholdMetrics | None = None
    valid: ThresholdMetrics | None = None
    test: ThresholdMetrics | None = None
    prevalences: Sequence[dict[str, Any]] = ()

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Self:
        """Build it from :meth:`to_dict`'s form.

        Raises:
            KeyError, TypeError, ValueError: if there is no class, or no threshold that is a number.
        """
        known = {field.name: stored[field.name] for field in fields(cls) if field.name in stored}
        check_types(known, cls)
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON types."""
        optional = ("out_of_fold", "test")
        return {name: value for name, value in vars(self).items() if name not in optional or value is not None}


@dataclass(frozen=True, kw_only=True)
class ChosenThreshold:
    """A threshold that was chosen before the training that uses it.

    Attributes:
        point: class and threshold.
        temperature: of the probabilities that it was chosen on; ``None`` for a given number.
        crossval: what run.json says of the cross-validation that chose it; ``None`` for a given number.
    """

    point: OperatingPoint
    temperature: float | None = None
    crossval: dict[str, Any] | None = None


def choose_threshold(positive: NDArray[np.bool_], scores: NDArray[np.floating], target: float) -> float:
    """Return the best threshold whose sensitivity is at least ``target``.

    Of all thresholds that reach the target, those with the highest specificity are taken, of these the ones with the
    highest sensitivity, and of these the middle of the gap between two scores, in logits. Rounding of a probability
    then changes no decision unless the scores of both classes nearly touch.

    Args:
        positive: bool (n,), at least one true.
        scores: probability (n,) of the positive class; compared in float32, as an exported model does.
        target: 0 to 1.

    Returns:
        A float32 number t: ``score >= t`` is true for the same scores in float32 and in float64.
    """
    scores = np.asarray(scores, np.float32)
    found = np.unique(scores)  # each may be the lowest that is called positive
    hits, alarms = (
        np.bincount(np.searchsorted(found, scores[part]), minlength=len(found))[::-1].cumsum()[::-1]
        for part in (positive, ~positive)
    )
    reached = np.flatnonzero(hits >= max(1, math.ceil(target * int(positive.sum()) - 1e-9)))
    best = min(reached.tolist(), key=lambda place: (alarms[place], -hits[place]))
    return middle_of(float(found[best - 1]) if best else None, float(found[best]))


def middle_of(below: float | None, lowest: float) -> float:
    """Return a float32 threshold in the middle of a gap, in logits: above ``below`` and at most ``lowest``.

    Args:
        below: the highest probability under the threshold, or ``None``: half of ``lowest`` is taken.
        lowest: the lowest probability that is called positive.
    """
    if below is None:
        return float(np.float32(lowest) / np.float32(2))
    # float32 has no probability closer to 0 and to 1 than these: their logits are finite.
    low, high = np.clip([below, lowest], 1e-45, 1 - 2.0**-25)
    middle = np.float32(1 / (1 + math.exp(-(_logit(low) + _logit(high)) / 2)))
    return float(np.clip(middle, np.nextafter(np.float32(below), np.float32(1)), np.float32(lowest)))


def _logit(probability: float) -> float:
    return math.log(probability) - math.log1p(-probability)


def positives_needed(target: float) -> int | None:
    """Return how many positives are needed so that Wilson's interval starts at ``target``, if all of them are found.

    ``None`` for a target of 1, which no number of images can support.
    """
    if target >= 1:
        return None
    # If all n are found, the lower end is n / (n + z²).
    return math.ceil(Z**2 * target / (1 - target) - 1e-9)


def choose_operating_point(
    predictions: Predictions, class_names: tuple[str, ...], target: TargetSpec | OperatingPoint
) -> OperatingPoint:
    """Choose the threshold on the validation rows, or take a chosen one; measure it on them and on the test rows.

    The predictions have the final temperature. Predictive values are computed from the out-of-fold predictions that
    chose it, else from the test rows, else from the validation rows.

    Raises:
        DataError: if there is no such class, or no validation image of it to choose on.
    """
    valid, test = predictions.part("valid"), predictions.part("test")
    if isinstance(target, TargetSpec):
        code = positive_class(target, class_names, valid.labels)
        point = point_at_target(valid.labels == code, valid.probabilities[:, code], valid.patients, target)
        point = replace(point, valid=point.out_of_fold, out_of_fold=None, chosen_on=VALIDATION)
    else:
        code = class_names.index(target.positive)
        point = replace(target, valid=_measured(valid, code, target.threshold))
    tested = _measured(test, code, point.threshold)
    shown = point.out_of_fold or tested or point.valid
    return replace(point, test=tested, prevalences=_at_prevalences(shown) if shown else ())


def _measured(part: Predictions, code: int, threshold: float) -> ThresholdMetrics | None:
    if not len(part):
        return None
    return threshold_metrics(part.labels == code, part.probabilities[:, code], threshold, part.patients)


def point_at_target(
    positive: NDArray[np.bool_], scores: NDArray[np.floating], patients: NDArray[np.int64], target: TargetSpec
) -> OperatingPoint:
    """Choose the threshold on out-of-fold predictions: bool (n,), probabilities (n,), and the patient of each image."""
    threshold = choose_threshold(positive, scores, target.target_sensitivity)
    measured = threshold_metrics(positive, scores, threshold, patients)
    assert measured["sensitivity"]["interval"] is not None
    lower = measured["sensitivity"]["interval"][0]
    return OperatingPoint(
        positive=target.positive,
        target_sensitivity=target.target_sensitivity,
        threshold=threshold,
        chosen_on=OUT_OF_FOLD,
        supported=lower >= target.target_sensitivity,
        note=_support_note(int(positive.sum()), lower, target.target_sensitivity),
        out_of_fold=measured,
        prevalences=_at_prevalences(measured),
    )


def _at_prevalences(shown: ThresholdMetrics) -> list[dict[str, Any]]:
    return [
        {"prevalence": share, **predictive_values(shown["sensitivity"], shown["specificity"], share)}
        for share in PREVALENCES
    ]


def positive_class(target: TargetSpec | OperatingPoint, class_names: Sequence[str], labels: NDArray[np.integer]) -> int:
    """Return the index of the target class. It needs no predictions, so it can be checked before training.

    Args:
        target: names the class; an operating point is not chosen, and needs no image.
        class_names: of all classes.
        labels: of the images that the threshold is chosen on.

    Raises:
        DataError: if there is no such class, or no image of it to choose on.
    """
    if target.positive not in class_names:
        raise DataError(
            f"there is no class {target.positive}",
            expected=listed(class_names),
            fix="choose one of the classes with --positive",
        )
    code = class_names.index(target.positive)
    if isinstance(target, TargetSpec) and not (labels == code).any():
        raise DataError(
            f"no threshold can be chosen: there is no validation image of class {target.positive}",
            fix="choose it on all images with xhead crossval --positive, or leave out --positive",
        )
    return code


def threshold_metrics(
    positive: NDArray[np.bool_],
    scores: NDArray[np.floating],
    threshold: float,
    patients: NDArray[np.int64] | None = None,
) -> ThresholdMetrics:
    """Measure a threshold, from which on a row is predicted positive.

    Args:
        positive: bool (n,), the truth.
        scores: probabilities (n,).
        threshold: compared in the type of ``scores``.
        patients: int64 (n,), from 0 without gaps, for intervals by patient; by default each row is on its own.
    """
    called = np.asarray(scores) >= threshold
    rates = rates_of(positive, called, np.arange(len(called)) if patients is None else patients)
    figures = {name: found.to_dict() for name, found in rates.items()}
    return cast(ThresholdMetrics, {**confusion_counts(positive, called)._asdict(), **figures})


def rates_of(
    positive: NDArray[np.bool_],
    called: NDArray[np.bool_],
    patients: NDArray[np.int64],
    among: NDArray[np.bool_] | bool = True,
) -> dict[str, Estimate]:
    """Estimate ``sensitivity``, ``specificity``, ``ppv`` and ``npv`` of decisions, with intervals by patient.

    Args:
        positive: bool (n,), the truth.
        called: bool (n,), the decisions.
        patients: int64 (n,), from 0 without gaps.
        among: bool (n,), the images that count.
    """
    return {
        "sensitivity": proportion_of(called, positive & among, patients),
        "specificity": proportion_of(~called, ~positive & among, patients),
        "ppv": proportion_of(positive, called & among, patients),
        "npv": proportion_of(~positive, ~called & among, patients),
    }


def predictive_values(
    sensitivity: Mapping[str, Any], specificity: Mapping[str, Any], prevalence: float
) -> dict[str, Any]:
    """Return PPV and NPV and their 95 % intervals at a prevalence, which is taken as exact, by Bayes' rule.

    ``sensitivity`` and ``specificity`` have a ``value`` and an ``interval``; the intervals follow from theirs. Each
    value is ``None`` where it is undefined.
    """
    found: dict[str, Any] = {"ppv": None, "npv": None, "ppv_interval": None, "npv_interval": None}
    if sensitivity["value"] is None or specificity["value"] is None:
        return found
    odds = prevalence / (1 - prevalence)
    for name, right, other, weight in (
        ("ppv", sensitivity, specificity, 1 / odds),
        ("npv", specificity, sensitivity, odds),
    ):
        # PPV = 1 / (1 + (1 − specificity) / sensitivity · (1 − prevalence) / prevalence); NPV with the roles swapped.
        wrong, (low, high) = 1 - other["value"], other["interval"]
        if wrong + right["value"] == 0:
            continue
        found[name] = right["value"] / (right["value"] + wrong * weight)
        ends = ratio_interval(wrong, (1 - high, 1 - low), right["value"], right["interval"])
        found[f"{name}_interval"] = (1 / (1 + ends[1] * weight), 1 / (1 + ends[0] * weight))
    return found


def _support_note(positives: int, lower: float, target: float) -> str:
    if lower >= target:
        return ""
    needed = positives_needed(target)
    enough = f"; at least {needed} are needed, even if all of them are found" if needed and positives < needed else ""
    return (
        f"{positives} positive images are too few to claim a sensitivity of {target:g}: "
        f"its 95 % confidence interval starts at {lower:.3f}{enough}"
    )
