"""The operating point: from which probability on an image is called positive, and what that costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.errors import DataError
from xfeat.head.evaluation.intervals import ratio_interval, wilson_interval
from xfeat.head.evaluation.predictions import Predictions
from xfeat.head.specs import TargetSpec

# From screening where the disease is rare to a clinic where every other patient has it.
PREVALENCES = (0.001, 0.01, 0.05, 0.1, 0.2, 0.5)


def choose_threshold(positive: NDArray[np.bool_], scores: NDArray[np.floating], target: float) -> float:
    """Return the highest threshold that finds at least ``target`` of the positive rows.

    It lies midway between the lowest probability that is called positive and the next lower one, so that the last
    digit of a probability decides nothing.

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
    """Return how many positives, all of them found, put the lower end of Wilson's interval at ``target``.

    ``None`` if no number does, which is so for a target of 1.
    """
    if target >= 1:
        return None
    # All of n found: the lower end is n / (n + z²).
    squared = 1.959963984540054**2
    return math.ceil(squared * target / (1 - target) - 1e-9)


def operating_point(predictions: Predictions, class_names: tuple[str, ...], target: TargetSpec) -> dict[str, Any]:
    """Choose the threshold on the validation rows and describe it there and on the test rows.

    Args:
        predictions: of all parts, with the temperature that will be used.
        class_names: C names.
        target: what is asked.

    Returns:
        ``positive``, ``threshold``, ``target_sensitivity``, ``supported`` (the interval's lower end on validation
        reaches the target), ``note``, ``valid`` and ``test`` (see :func:`decisions_at`; ``test`` may be absent),
        ``prevalences``: :func:`predictive_values` at each of :data:`PREVALENCES`, from the test rows if there are any.

    Raises:
        DataError: if there is no such class, or no validation image of it.
    """
    parts = {name: predictions.part(name) for name in ("valid", "test")}
    valid = parts["valid"]
    code = positive_class(target, class_names, valid.labels)
    threshold = choose_threshold(valid.labels == code, valid.probabilities[:, code], target.target_sensitivity)
    described = {
        name: decisions_at(part.labels == code, part.probabilities[:, code], threshold)
        for name, part in parts.items()
        if len(part)
    }
    shown = described.get("test", described["valid"])
    lower = described["valid"]["sensitivity"]["interval"][0]
    return {
        **target.to_dict(),
        "threshold": threshold,
        "supported": lower >= target.target_sensitivity,
        "note": _support_note(int((valid.labels == code).sum()), lower, target.target_sensitivity),
        **described,
        "prevalences": [
            {"prevalence": share, **predictive_values(shown["sensitivity"], shown["specificity"], share)}
            for share in PREVALENCES
        ],
    }


def positive_class(target: TargetSpec, class_names: Sequence[str], valid_labels: NDArray[np.integer]) -> int:
    """Return the number of the class that is asked for; needs no predictions, so that it can be asked early.

    Raises:
        DataError: if there is no such class, or no validation image of it.
    """
    if target.positive not in class_names:
        raise DataError(
            f"no class called {target.positive}",
            expected=", ".join(class_names),
            fix="name one of the classes with --positive",
        )
    code = class_names.index(target.positive)
    if not (valid_labels == code).any():
        raise DataError(
            f"no validation image of class {target.positive}, so no threshold can be chosen",
            fix="move images of it into the valid folder, or leave out --positive",
        )
    return code


def decisions_at(positive: NDArray[np.bool_], scores: NDArray[np.floating], threshold: float) -> dict[str, Any]:
    """Describe a threshold: four counts, and four proportions with Wilson's intervals.

    Args:
        positive: bool (n,), whether a row is of the class.
        scores: (n,), its probability.
        threshold: called positive from here on.

    Returns:
        ``true_positive``, ``false_negative``, ``false_positive``, ``true_negative``; ``sensitivity``, ``specificity``,
        ``ppv`` and ``npv`` as ``{"value", "interval"}``, both ``None`` without trials.
    """
    called = scores >= threshold
    hits, misses = int((called & positive).sum()), int((~called & positive).sum())
    alarms, quiet = int((called & ~positive).sum()), int((~called & ~positive).sum())
    return {
        "true_positive": hits,
        "false_negative": misses,
        "false_positive": alarms,
        "true_negative": quiet,
        "sensitivity": proportion(hits, hits + misses),
        "specificity": proportion(quiet, quiet + alarms),
        "ppv": proportion(hits, hits + alarms),
        "npv": proportion(quiet, quiet + misses),
    }


def proportion(successes: int, trials: int) -> dict[str, Any]:
    """Return a proportion with its interval."""
    return {"value": successes / trials if trials else None, "interval": wilson_interval(successes, trials)}


def predictive_values(sensitivity: dict[str, Any], specificity: dict[str, Any], prevalence: float) -> dict[str, Any]:
    """Return PPV and NPV where a share ``prevalence`` of the images is positive, by Bayes' rule.

    Args:
        sensitivity: as :func:`proportion` gives it.
        specificity: the same.
        prevalence: more than 0 and less than 1, taken as known.

    Returns:
        ``ppv``, ``npv``, and ``ppv_interval`` and ``npv_interval`` (95 %, from those of both proportions); ``None``
        where there is none.
    """
    found: dict[str, Any] = {"ppv": None, "npv": None, "ppv_interval": None, "npv_interval": None}
    if sensitivity["value"] is None or specificity["value"] is None:
        return found
    odds = prevalence / (1 - prevalence)
    for name, right, other, weight in (
        ("ppv", sensitivity, specificity, 1 / odds),
        ("npv", specificity, sensitivity, odds),
    ):
        # PPV = 1 / (1 + (1 − specificity) / sensitivity · (1 − prevalence) / prevalence), and NPV the other way round.
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
    enough = f"; {needed} or more would be needed, all of them found" if needed and positives < needed else ""
    return (
        f"{positives} positive validation images do not support a sensitivity of {target:g}: "
        f"the 95 % interval reaches down to {lower:.3f}{enough}"
    )
