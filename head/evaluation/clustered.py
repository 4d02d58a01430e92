"""Proportions, AUC and calibration with 95 % intervals by patient: images of one patient are not independent.

Each estimate has an influence per patient: how far this patient moves it. Their squares add up to its variance, and
the products of two estimates' influences to their covariance. Nothing is drawn at random, so that no seed is needed;
docs/decisions/0100 says why this is not a bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from xfeat.head.evaluation.intervals import Interval, Z, wilson

_STEPS = 50  # of Newton's method, which needs about six


class Figure(TypedDict):
    """An estimate and its 95 % interval; both are ``None`` where they are undefined."""

    value: float | None
    interval: Interval | None


@dataclass(frozen=True)
class Estimate:
    """An estimate from the images of patients.

    Attributes:
        value: ``None`` if it is undefined, such as a sensitivity without positives.
        influence: float64 (G,), per patient; the variance is the sum of their squares.
        limits: returns the interval of ``value`` ± that many standard errors, or ``None``.
    """

    value: float | None
    influence: NDArray[np.float64]
    limits: Callable[[float], Interval | None]

    def to_dict(self) -> Figure:
        """Return ``value`` and the 95 % ``interval``."""
        return {"value": self.value, "interval": self.limits(Z)}


def undefined(patients: int) -> Estimate:
    """Return an estimate without value."""
    return Estimate(None, np.zeros(patients), lambda z: None)


def proportion_of(successes: NDArray[np.bool_], among: NDArray[np.bool_], patients: NDArray[np.int64]) -> Estimate:
    """Estimate a proportion of images.

    Its interval is Wilson's for as many independent images as these are worth: their number by the design effect, 1 or
    more. For this, one patient with every image right and one with every image wrong are added, so that a proportion of
    1 does not look as if images of one patient were independent.

    Args:
        successes: bool (n,).
        among: bool (n,), the images that count.
        patients: int64 (n,), from 0 without gaps.

    Source:
        Rao and Scott, "A simple method for the analysis of clustered binary data", 1992.
    """
    size = int(patients.max(initial=-1)) + 1
    trials = np.bincount(patients, weights=among, minlength=size)
    if not (total := trials.sum()):
        return undefined(size)
    hits = np.bincount(patients, weights=successes & among, minlength=size)
    value, seen = float(hits.sum() / total), int((trials > 0).sum())
    effective = total
    if seen < total:
        mean = total / seen
        tried, right = np.append(trials, [mean, mean]), np.append(hits, [mean, 0])
        share = right.sum() / tried.sum()
        variance = ((right - share * tried) ** 2).sum() / tried.sum() ** 2
        effective = total / max(1.0, variance * tried.sum() / (share * (1 - share)))
    return Estimate(
        value, _corrected((hits - value * trials) / total, seen), lambda z: wilson(value, float(effective), z)
    )


def auc_of(
    positive: NDArray[np.bool_], scores: NDArray[np.floating], patients: NDArray[np.int64], size: int
) -> Estimate:
    """Estimate the area under the ROC curve of scores (n,), with DeLong's variance for clustered images.

    ``patients`` int64 (n,) are numbers below ``size``.

    The interval is symmetric in logits; that of an area of 0 or 1, whose variance is 0, is Newcombe's for as many
    images as there are patients.

    Source:
        Obuchowski, "Nonparametric analysis of clustered ROC curve data", 1997; Newcombe, "Confidence intervals for an
        effect size measure based on the Mann–Whitney statistic", part 2, 2006, method 5.
    """
    ones, zeros = int(positive.sum()), int((~positive).sum())
    if not ones or not zeros:
        return undefined(size)
    ranks = _midranks(scores)
    above = np.empty(len(scores))  # the share of the other class on the right side of each image
    above[positive] = (ranks[positive] - _midranks(scores[positive])) / zeros
    above[~positive] = 1 - (ranks[~positive] - _midranks(scores[~positive])) / ones
    value = float(above[positive].mean())
    parts, counts = [], []
    for part, number in ((positive, ones), (~positive, zeros)):
        counts.append(len(np.unique(patients[part])))
        sums = np.bincount(patients[part], weights=(above[part] - value) / number, minlength=size)
        parts.append(_corrected(sums, counts[-1]))
    influence = parts[0] + parts[1]

    def limits(z: float) -> Interval | None:
        if min(counts) < 2:
            return None
        return _limits_in_logits(value, influence, z) or newcombe(value, counts[0], counts[1], z)

    return Estimate(value, influence, limits)


def _limits_in_logits(value: float, influence: NDArray[np.float64], z: float) -> Interval | None:
    """Return an interval that is symmetric in logits, or ``None`` where it has no width."""
    error = _error(influence)
    if not 0 < value < 1 or not error:
        return None
    middle, half = math.log(value / (1 - value)), z * error / (value * (1 - value))
    return _expit(middle - half), _expit(middle + half)


def newcombe(area: float, positives: int, negatives: int, z: float) -> Interval:
    """Return Newcombe's interval of an area under the ROC curve, his method 5.

    Source:
        Newcombe, "Confidence intervals for an effect size measure based on the Mann–Whitney statistic", part 2, 2006.
    """
    half = (positives + negatives) / 2 - 1

    def is_outside(true: float) -> bool:
        spread = 1 + half * ((1 - true) / (2 - true) + true / (1 + true))
        return (true - area) ** 2 > z * z * true * (1 - true) * spread / (positives * negatives)

    ends = []
    for end in (0.0, 1.0):
        inside, outside = area, end
        for _ in range(_STEPS):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if is_outside(middle) else (middle, outside)
        ends.append(outside)
    return ends[0], ends[1]


def calibration_of(
    positive: NDArray[np.bool_], log_odds: NDArray[np.float64], patients: NDArray[np.int64], size: int
) -> dict[str, Estimate]:
    """Fit the calibration ``slope`` and ``intercept`` by logistic regression of the truth on predicted log-odds (n,).

    A slope of 1 is right; below 1, high probabilities are too high and low ones too low. The intercept is in log-odds,
    with a slope of 1; 0 is right, above 0 probabilities are too low on the whole.
    Both are undefined if one class is absent, and the slope if a threshold divides the classes without a mistake.
    ``patients`` int64 (n,) are numbers below ``size``.

    Source:
        Van Calster et al., "Calibration: the Achilles heel of predictive analytics", 2019; the variance is the
        sandwich estimator for clusters, Liang and Zeger, 1986.
    """
    ones, nothing = np.ones_like(log_odds), undefined(size)
    if positive.all() or not positive.any():
        return {"slope": nothing, "intercept": nothing}
    truth = positive.astype(np.float64)
    intercept = _logistic(ones[:, None], truth, log_odds, patients, size)[0]
    separated = log_odds[positive].min() >= log_odds[~positive].max() or log_odds.min() == log_odds.max()
    slope = nothing if separated else _logistic(np.stack([ones, log_odds], 1), truth, 0 * ones, patients, size)[1]
    return {"slope": slope, "intercept": intercept}


def _logistic(
    inputs: NDArray[np.float64],
    truth: NDArray[np.float64],
    offset: NDArray[np.float64],
    patients: NDArray[np.int64],
    size: int,
) -> list[Estimate]:
    """Fit a logistic regression by Newton's method; return its coefficients."""
    seen, coefficients = len(np.unique(patients)), np.zeros(inputs.shape[1])

    def log_likelihood(at: NDArray[np.float64]) -> float:
        margins = np.where(truth > 0, 1, -1) * (offset + inputs @ at)
        return float(-np.logaddexp(0, -margins).sum())

    best = log_likelihood(coefficients)
    for _ in range(_STEPS):
        chance = _expit_of(offset + inputs @ coefficients)
        scores = inputs * (truth - chance)[:, None]
        information = inputs.T @ (inputs * (chance * (1 - chance))[:, None])
        if not np.isfinite(information).all() or np.linalg.cond(information) > 1e12:
            return [undefined(size)] * inputs.shape[1]
        step = np.linalg.solve(information, scores.sum(0))
        while (now := log_likelihood(coefficients + step)) < best - 1e-9:
            step = step / 2
        coefficients, best = coefficients + step, now
        if np.abs(step).max() < 1e-10:
            break
    moved = scores @ np.linalg.inv(information)
    return [
        _wald(float(value), np.bincount(patients, weights=moved[:, place], minlength=size), seen)
        for place, value in enumerate(coefficients)
    ]


def _wald(value: float, sums: NDArray[Any], seen: int) -> Estimate:
    influence = _corrected(sums, seen)
    error = _error(influence)
    return Estimate(value, influence, lambda z: (value - z * error, value + z * error) if seen > 1 else None)


def mean_of(estimates: list[Estimate]) -> Estimate:
    """Return the mean of areas under ROC curves; undefined if one of them is."""
    values = [each.value for each in estimates if each.value is not None]
    if len(values) < len(estimates):
        return undefined(len(estimates[0].influence))
    if all(each is estimates[0] for each in estimates):
        return estimates[0]
    value, influence = float(np.mean(values)), np.mean([each.influence for each in estimates], axis=0)

    def limits(z: float) -> Interval | None:
        ends = [found for each in estimates if (found := each.limits(z))]
        if len(ends) < len(estimates):
            return None
        low, high = np.mean(ends, axis=0).tolist()
        return _limits_in_logits(value, influence, z) or (low, high)

    return Estimate(value, influence, limits)


def difference(first: Estimate, second: Estimate, z: float = Z, *, paired: bool = True) -> Interval | None:
    """Return the interval of ``first`` minus ``second``, or ``None`` if one of them has none.

    Args:
        first: an estimate.
        second: another one.
        z: number of standard errors.
        paired: the influences of both are of the same patients, who may contribute to both.
    """
    ends, others = first.limits(z), second.limits(z)
    if first.value is None or second.value is None or ends is None or others is None:
        return None
    correlation = 0.0
    if paired and (scale := _error(first.influence) * _error(second.influence)):
        correlation = float(np.clip((first.influence * second.influence).sum() / scale, -1, 1))

    return interval_of_difference(first.value, ends, second.value, others, correlation)


def interval_of_difference(
    first: float, ends: Interval, second: float, others: Interval, correlation: float = 0.0
) -> Interval:
    """Return the interval of ``first`` minus ``second`` from their intervals ``ends`` and ``others``.

    Source:
        MOVER: Zou and Donner, "Construction of confidence limits about effect measures", 2008.
    """
    apart = first - second

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one * one + other * other - 2 * correlation * one * other))

    return apart - reach(first - ends[0], others[1] - second), apart + reach(ends[1] - first, second - others[0])


def _error(influence: NDArray[np.float64]) -> float:
    """Return the standard error."""
    return math.sqrt((influence**2).sum())


def _corrected(sums: NDArray[Any], patients: int) -> NDArray[np.float64]:
    return np.asarray(sums, np.float64) * math.sqrt(patients / (patients - 1) if patients > 1 else 1)


def _midranks(scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return ranks from 1; equal scores share the mean of theirs."""
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[places])


def _expit(value: float) -> float:
    return float(_expit_of(np.array(value)))


def _expit_of(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(0.5 + 0.5 * np.tanh(values / 2))
