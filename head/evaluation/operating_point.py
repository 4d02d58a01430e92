"""The operating point: the threshold above which an image is predicted positive, and what that costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self, TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.errors import DataError
from xfeat.featurize.text import listed
from xfeat.featurize.typed_json import check_types
from xfeat.head.evaluation.intervals import ratio_interval, wilson_interval
from xfeat.head.evaluation.metrics import confusion_counts
from xfeat.head.evaluation.predictions import Predictions
from xfeat.head.specs import TargetSpec

# From screening, where the disease is rare, to a clinic where every second patient has it.
PREVALENCES = (0.001, 0.01, 0.05, 0.1, 0.2, 0.5)


class Proportion(TypedDict):
    """A proportion and its Wilson interval; both are ``None`` without trials."""

    value: float | None
    interval: tuple[float, float] | None


class ThresholdMetrics(TypedDict):
    """What a threshold does to the images of a split: the four confusion counts, and four proportions."""

    true_positive: int
    false_negative: int
    false_positive: int
    true_negative: int
    sensitivity: Proportion
    specificity: Proportion
    ppv: Proportion
    npv: Proportion


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """The threshold of a run, as run.json stores it.

    Attributes:
        positive: the class that the threshold is for.
        target_sensitivity: what was asked for.
        threshold: probability of ``positive`` from which it is predicted.
        supported: whether the confidence interval of the sensitivity on the validation images lies above the target.
        note: why it is not supported, or empty.
        valid: the threshold on the validation images; see :func:`threshold_metrics`.
        test: the same on the test images, if there are any.
        prevalences: :func:`predictive_values` at each of :data:`PREVALENCES`.
    """

    positive: str
    target_sensitivity: float | None = None
    threshold: float
    supported: bool = False
    note: str = ""
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
        return {name: value for name, value in vars(self).items() if name != "test" or value is not None}


def choose_threshold(positive: NDArray[np.bool_], scores: NDArray[np.floating], target: float) -> float:
    """Return the highest threshold whose sensitivity is at least ``target``.

    It is midway between the lowest probability that is predicted positive and the next lower one, so that rounding of
    a probability changes no decision.

    Args:
        positive: bool (n,), at least one true.
        scores: probability (n,) of the positive class.
        target: 0 to 1.
    """
    wanted = max(1, math.ceil(target * int(positive.sum()) - 1e-9))
    lowest = float(np.sort(scores[positive])[::-1][wanted - 1])
    below = scores[scores < lowest]
    return (lowest + (float(below.max()) if len(below) else 0.0)) / 2


def positives_needed(target: float) -> int | None:
    """Return how many positives are needed so that Wilson's interval starts at ``target``, if all of them are found.

    ``None`` for a target of 1, which no number of images can support.
    """
    if target >= 1:
        return None
    # If all n are found, the lower end is n / (n + z²).
    squared = 1.959963984540054**2
    return math.ceil(squared * target / (1 - target) - 1e-9)


def choose_operating_point(
    predictions: Predictions, class_names: tuple[str, ...], target: TargetSpec
) -> OperatingPoint:
    """Choose the threshold on the validation rows and measure it on them and on the test rows.

    The predictions have the final temperature. Predictive values are computed from the test rows if there are any.

    Raises:
        DataError: if there is no such class, or no validation image of it.
    """
    valid, test = predictions.part("valid"), predictions.part("test")
    code = positive_class(target, class_names, valid.labels)
    threshold = choose_threshold(valid.labels == code, valid.probabilities[:, code], target.target_sensitivity)
    measured, tested = (
        threshold_metrics(part.labels == code, part.probabilities[:, code], threshold) if len(part) else None
        for part in (valid, test)
    )
    assert measured is not None
    shown, interval = tested or measured, measured["sensitivity"]["interval"]
    assert interval is not None
    lower = interval[0]
    return OperatingPoint(
        positive=target.positive,
        target_sensitivity=target.target_sensitivity,
        threshold=threshold,
        supported=lower >= target.target_sensitivity,
        note=_support_note(int((valid.labels == code).sum()), lower, target.target_sensitivity),
        valid=measured,
        test=tested,
        prevalences=[
            {"prevalence": share, **predictive_values(shown["sensitivity"], shown["specificity"], share)}
            for share in PREVALENCES
        ],
    )


def positive_class(target: TargetSpec, class_names: Sequence[str], valid_labels: NDArray[np.integer]) -> int:
    """Return the index of the target class. It needs no predictions, so it can be checked before training.

    Raises:
        DataError: if there is no such class, or no validation image of it.
    """
    if target.positive not in class_names:
        raise DataError(
            f"there is no class {target.positive}",
            expected=listed(class_names),
            fix="choose one of the classes with --positive",
        )
    code = class_names.index(target.positive)
    if not (valid_labels == code).any():
        raise DataError(
            f"no threshold can be chosen: there is no validation image of class {target.positive}",
            fix="move images of this class into the valid folder, or leave out --positive",
        )
    return code


def threshold_metrics(positive: NDArray[np.bool_], scores: NDArray[np.floating], threshold: float) -> ThresholdMetrics:
    """Measure a threshold, from which on a row is predicted positive: bool (n,), and their probabilities (n,)."""
    counts = confusion_counts(positive, scores >= threshold)
    rates = {name: proportion(*pair) for name, pair in counts.rates.items()}
    return cast(ThresholdMetrics, {**counts._asdict(), **rates})


def proportion(successes: int, trials: int) -> Proportion:
    """Measure a proportion."""
    return {"value": successes / trials if trials else None, "interval": wilson_interval(successes, trials)}


def predictive_values(
    sensitivity: Mapping[str, Any], specificity: Mapping[str, Any], prevalence: float
) -> dict[str, Any]:
    """Return PPV and NPV and their 95 % intervals at a prevalence, which is taken as exact, by Bayes' rule.

    ``sensitivity`` and ``specificity`` are from :func:`proportion`; the intervals follow from theirs. Each value is
    ``None`` where it is undefined.
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
        f"{positives} positive validation images are too few to claim a sensitivity of {target:g}: "
        f"its 95 % confidence interval starts at {lower:.3f}{enough}"
    )
