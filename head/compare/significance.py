"""Is one classifier better than another, or may the difference be chance?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfeat.head.evaluation.intervals import Interval, grouped_interval
from xfeat.head.reports.formatting import points

SIGNIFICANCE = 0.05
LARGER, CHANCE, NOT_COMPARABLE = "larger than chance", "may be chance", "not comparable"

PredictedClasses = Mapping[str, tuple[str, str]]
"""Path to the true and the most probable class of each image of a split."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Accuracy of one classifier minus that of another, on the same images.

    Attributes:
        images: number of shared images; 0 if not comparable.
        accuracy: the difference, -1 to 1.
        only_first: images that only the first classifies correctly.
        only_second: images that only the second classifies correctly.
        p: p-value of McNemar's exact test.
        interval: 95 % paired bootstrap interval of the difference over patients; ``None`` unless patients have several
            images.
        problem: why the two cannot be compared, or empty.
    """

    images: int = 0
    accuracy: float = 0.0
    only_first: int = 0
    only_second: int = 0
    p: float = 1.0
    interval: Interval | None = None
    problem: str = ""

    @property
    def verdict(self) -> str:
        """``larger than chance``, ``may be chance`` or ``not comparable``."""
        if self.problem:
            return NOT_COMPARABLE
        significant = self.p < SIGNIFICANCE
        if self.interval is not None:  # images of one patient are not independent
            significant = significant and not self.interval[0] <= 0 <= self.interval[1]
        return LARGER if significant else CHANCE

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON types."""
        return {**asdict(self), "verdict": self.verdict}


def paired_difference(first: PredictedClasses, second: PredictedClasses, groups: Mapping[str, str]) -> Difference:
    """Compare two classifiers, image by image; ``groups`` is path to patient, where known."""
    if problem := _why_not(first, second):
        return Difference(problem=problem)
    correct, other_correct = (
        np.array([truth == predicted for _, (truth, predicted) in sorted(found.items())]) for found in (first, second)
    )
    gains, losses = int((correct & ~other_correct).sum()), int((~correct & other_correct).sum())
    change = correct.astype(np.float64) - other_correct
    return Difference(
        images=len(first),
        accuracy=float(change.mean()),
        only_first=gains,
        only_second=losses,
        p=mcnemar(gains, losses),
        interval=_interval_over_patients(change, [groups.get(path, "") for path in sorted(first)]),
    )


def against(name: str) -> tuple[str, str, str, str]:
    """Return the headings of :func:`difference_cells`, from the name of what was compared with."""
    return f"difference from {name}, points", "its 95 % interval", f"p, McNemar against {name}", "verdict"


def difference_cells(difference: Difference | None) -> tuple[str, str, str, str]:
    """Write a difference: ``−2.1``, ``−4.0 to −0.3``, ``0.031``, ``larger than chance``, below :func:`against`."""
    if difference is None:
        return "–", "–", "–", "–"
    if difference.problem:
        return "–", "–", "–", f"{NOT_COMPARABLE}: {difference.problem}"
    ends = "–" if difference.interval is None else " to ".join(map(points, difference.interval))
    return points(difference.accuracy), ends, f"{difference.p:.2g}", difference.verdict


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test, from the images that only one classifies correctly.

    Source: McNemar, "Note on the sampling error of the difference between correlated proportions", 1947; exact, through
    scipy's binomial test.
    """
    from scipy.stats import binomtest

    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second, 0.5).pvalue)


def _why_not(first: PredictedClasses, second: PredictedClasses) -> str:
    if not first or not second:
        return "one has no images of this split"
    shared = first.keys() & second.keys()
    if len(shared) != len(first) or len(shared) != len(second):
        return f"different images: {len(shared)} shared of {len(first)} and {len(second)}"
    if relabelled := sum(first[path][0] != second[path][0] for path in shared):
        return f"different labels: {relabelled} of {len(shared)} images"
    return ""


def _interval_over_patients(change: NDArray[np.float64], groups: list[str]) -> Interval | None:
    if not all(groups) or len(set(groups)) == len(groups):
        return None
    return grouped_interval(change, np.array(groups), seed=0)
