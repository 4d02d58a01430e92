"""What a ROC curve and a calibration plot show, with 95 % intervals by patient. Arrays in, arrays out."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xfeat.head.evaluation.clustered import Estimate, proportion_of
from xfeat.head.evaluation.intervals import Z

_MOST_CORNERS = 200  # of a curve with more, equally many between them are left out: a line cannot show them
MOST_BINS, FEWEST_IMAGES = 5, 20


class RocCurve(NamedTuple):
    """A ROC curve and the 95 % interval of its sensitivity at each specificity; all float64 (k,), 0 to 1.

    Attributes:
        false_rate: 1 minus the specificity, ascending.
        true_rate: the sensitivity.
        low: lower end of its interval.
        high: upper end of it.
    """

    false_rate: NDArray[np.float64]
    true_rate: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def roc_with_interval(
    positive: NDArray[np.bool_], scores: NDArray[np.floating], patients: NDArray[np.int64]
) -> RocCurve:
    """Return the ROC curve of scores and a pointwise 95 % interval of the sensitivity at each specificity.

    The interval joins that of the sensitivity at a threshold (Wilson's, with the design effect of the patients) and the
    change of the sensitivity between the ends of the interval of the specificity there, by MOVER. Nothing is drawn at
    random, and a perfect curve has an interval too.

    Args:
        positive: bool (n,), with at least one image of each class.
        scores: (n,), higher for the positive class.
        patients: int64 (n,), from 0 without gaps.

    Source:
        Zou and Donner, "Construction of confidence limits about effect measures", 2008; docs/decisions/0103.
    """
    from sklearn.metrics import roc_curve

    false_rate, true_rate, thresholds = roc_curve(positive, scores)
    false_rate, true_rate = np.asarray(false_rate, np.float64), np.asarray(true_rate, np.float64)
    corners = np.unique(np.linspace(0, len(thresholds) - 1, _MOST_CORNERS).round().astype(int))
    low, high = [], []
    for corner in corners:
        called, value = scores >= thresholds[corner], true_rate[corner]
        bottom, top = _ends(proportion_of(called, positive, patients))
        least, most = _ends(proportion_of(called, ~positive, patients))
        before, after = (true_rate[np.searchsorted(false_rate, end, "right") - 1] for end in (least, most))
        low.append(value - math.hypot(value - bottom, value - min(before, value)))
        high.append(value + math.hypot(top - value, max(after, value) - value))
    low[-1] = high[-1] = 1.0  # where everything is called positive, nothing is missed
    # The true curve never falls, so an interval holds at every higher, or every lower, rate too.
    lower = np.maximum.accumulate(np.clip(low, 0, 1))
    upper = np.minimum.accumulate(np.clip(high, 0, 1)[::-1])[::-1]
    return RocCurve(false_rate[corners], true_rate[corners], lower, upper)


def _ends(estimate: Estimate) -> tuple[float, float]:
    return estimate.limits(Z) or (0.0, 1.0)


class CalibrationBin(NamedTuple):
    """Images of similar predicted probability.

    Attributes:
        images: their number.
        predicted: mean of their probabilities.
        observed: the share of them of which it came true.
        low: lower end of its 95 % interval.
        high: upper end of it.
    """

    images: int
    predicted: float
    observed: float
    low: float
    high: float


def calibration_bins(
    true: NDArray[np.bool_], predicted: NDArray[np.floating], patients: NDArray[np.int64]
) -> list[CalibrationBin]:
    """Divide images by their predicted probability: at most five bins of about equal count, of 20 images or more.

    Equal probabilities are in one bin. With fewer than 40 images there is one.

    Args:
        true: bool (n,), whether what was predicted came true.
        predicted: its probability (n,).
        patients: int64 (n,), from 0 without gaps.
    """
    values, sizes = np.unique(predicted, return_counts=True)
    ends, seen, count = list[float](), 0, len(true)
    for value, reached in zip(values, sizes.cumsum().tolist(), strict=True):
        left = max(1, min(MOST_BINS - len(ends), (count - seen) // FEWEST_IMAGES))  # bins of the images that are left
        enough = reached - seen >= (count - seen) / left and count - reached >= FEWEST_IMAGES
        if enough or reached == count:
            ends.append(value)
            seen = reached
    places = np.searchsorted(ends, predicted)
    bins = []
    for among in (places == place for place in range(len(ends))):
        low, high = _ends(proportion_of(true, among, patients))
        share, mean = float(true[among].mean()), float(predicted[among].mean())
        bins.append(CalibrationBin(int(among.sum()), mean, share, low, high))
    return bins
