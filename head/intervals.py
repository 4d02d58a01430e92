"""How far a figure from few images can be off: 95 % intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
_RESAMPLES = 2000

Interval = tuple[float, float]


def wilson_interval(successes: int, trials: int) -> Interval | None:
    """Return Wilson's 95 % interval of a proportion, or ``None`` without trials.

    It holds for independent trials: images of one patient are not quite that.

    Source:
        Wilson, "Probable inference, the law of succession, and statistical inference", 1927, through scipy.
    """
    from scipy.stats import binomtest

    if not trials:
        return None
    interval = binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def grouped_interval(values: NDArray[np.floating], groups: NDArray[Any], *, seed: int) -> Interval | None:
    """Return the 95 % percentile bootstrap interval of the mean of ``values``, drawing whole groups.

    Args:
        values: (n,), such as 1 for a right and 0 for a wrong answer.
        groups: (n,), the patient of each; images of one patient are drawn together.
        seed: of the draws.

    Returns:
        The interval, or ``None`` if there are fewer than two groups.
    """
    from scipy.stats import bootstrap

    _, codes = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(codes, weights=values), np.bincount(codes)
    if len(sums) < 2:
        return None
    result = bootstrap(
        (sums, sizes),
        _mean_of_groups,
        paired=True,
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=200,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(result.low), float(result.high)


def _mean_of_groups(
    sums: NDArray[np.floating], sizes: NDArray[np.integer], axis: int = -1
) -> NDArray[np.floating] | np.floating:
    result: NDArray[np.floating] | np.floating = sums.sum(axis=axis) / sizes.sum(axis=axis)
    return result
