"""95 % confidence intervals of metrics from a limited number of images. Needs numpy alone, as ``xserve eval`` does."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
Z = 1.959963984540054  # 97.5 % quantile of the normal distribution
_RESAMPLES = 2000
_BATCH = 200  # resamples held in memory at one time

Interval = tuple[float, float]


def wilson_interval(successes: int, trials: int) -> Interval | None:
    """Return Wilson's 95 % interval of a proportion, or ``None`` without trials.

    It assumes independent trials, which images of one patient are not.

    Source:
        Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    return wilson(successes / trials, trials) if trials else None


def wilson(share: float, trials: float, z: float = Z) -> Interval:
    """Return Wilson's interval of a proportion with ``z`` standard errors; ``trials`` may be an effective number."""
    squared = z**2
    centre = share + squared / (2 * trials)
    reach = z * math.sqrt(share * (1 - share) / trials + squared / (4 * trials**2))
    low, high = ((centre + side) / (1 + squared / trials) for side in (-reach, reach))
    return (low if share > 0 else 0.0), (high if share < 1 else 1.0)


def ratio_interval(upper: float, upper_ends: Interval, lower: float, lower_ends: Interval) -> Interval:
    """Return the 95 % interval of ``upper / lower``, two proportions from different images.

    It is computed from the 95 % intervals of both. Proportions of 0 and 1 need no correction, since their Wilson
    intervals have a width.

    Args:
        upper: the numerator, 0 to 1.
        upper_ends: its interval.
        lower: the denominator, 0 to 1.
        lower_ends: its interval.

    Returns:
        The interval; its upper end is infinite if ``lower`` may be 0.

    Source:
        MOVER-R: Donner and Zou, "Closed-form confidence intervals for functions of the normal mean and standard
        deviation", 2012; Newcombe, "MOVER-R confidence intervals for ratios and products of two independently
        estimated quantities", 2016. The lower end is rearranged to avoid cancellation.
    """
    product = upper * lower
    low, high = upper_ends
    least, most = lower_ends
    below, above = low * (2 * upper - low), high * (2 * upper - high)
    root = math.sqrt(max(0.0, product**2 - below * most * (2 * lower - most)))
    bottom = below / (product + root) if below > 0 else 0.0
    divisor = least * (2 * lower - least)
    if divisor <= 0:
        return bottom, math.inf
    return bottom, (product + math.sqrt(max(0.0, product**2 - above * divisor))) / divisor


def grouped_interval(values: NDArray[np.floating], groups: NDArray[Any], *, seed: int) -> Interval | None:
    """Return the 95 % percentile bootstrap interval of the mean of ``values``, resampling whole groups.

    Args:
        values: (n,), such as 1 for a correct and 0 for a wrong prediction.
        groups: (n,), such as the patient of each image.
        seed: of the resampling.

    Returns:
        The interval, or ``None`` if there are fewer than two groups.
    """
    _, codes = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(codes, weights=values), np.bincount(codes)
    if len(sums) < 2:
        return None
    rng = np.random.default_rng(seed)
    batches = (rng.integers(0, len(sums), (_BATCH, len(sums))) for _ in range(_RESAMPLES // _BATCH))
    means = np.concatenate([sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1) for drawn in batches])
    low, high = np.quantile(means, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return float(low), float(high)
