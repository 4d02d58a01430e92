"""Whether a difference is more than chance: McNemar's test and the bootstrap over patients."""

from __future__ import annotations

from math import comb

import pytest

from xfeat.head.compare.significance import Difference, PredictedClasses, mcnemar, paired_difference


def answers(right: list[bool], prefix: str = "") -> PredictedClasses:
    return {f"{prefix}{number}.png": ("covid", "covid" if good else "normal") for number, good in enumerate(right)}


@pytest.mark.parametrize(("gains", "losses"), [(0, 5), (3, 3), (9, 1), (12, 30), (1, 0)])
def test_mcnemar_is_the_two_sided_binomial_tail(gains: int, losses: int) -> None:
    """Reference: the sum over all outcomes that are as rare or rarer, term by term."""
    flips = gains + losses
    chances = [comb(flips, k) / 2**flips for k in range(flips + 1)]
    expected = sum(chance for chance in chances if chance <= chances[gains] * (1 + 1e-9))
    assert mcnemar(gains, losses) == pytest.approx(expected)
    assert mcnemar(losses, gains) == pytest.approx(expected)


def test_equal_answers_differ_by_nothing() -> None:
    same = answers([True, False, True])
    difference = paired_difference(same, same, {})
    assert (difference.accuracy, difference.p, difference.verdict) == (0.0, 1.0, "may be chance")


def test_a_clear_difference_is_named_and_counted() -> None:
    better, worse = answers([True] * 40), answers([True] * 28 + [False] * 12)
    difference = paired_difference(worse, better, {})
    assert (difference.only_first, difference.only_second, difference.images) == (0, 12, 40)
    assert difference.accuracy == pytest.approx(-0.3)
    assert difference.p == pytest.approx(2 / 2**12)
    assert difference.verdict == "larger than chance"


def test_images_of_one_patient_are_not_counted_as_independent() -> None:
    """All 12 images that differ are of one patient of many: McNemar alone would call that clear."""
    better, worse = answers([True] * 40), answers([True] * 28 + [False] * 12)
    groups = {f"{number}.png": "p" if number >= 28 else f"{number}" for number in range(40)}
    difference = paired_difference(worse, better, groups)
    assert difference.p < 0.05
    assert difference.interval is not None
    assert difference.interval[1] == 0
    assert difference.verdict == "may be chance"


def test_a_difference_spread_over_patients_stays_significant() -> None:
    better, worse = answers([True] * 60), answers(([True] * 2 + [False]) * 20)
    groups = {f"{number}.png": f"p{number // 3}" for number in range(60)}
    difference = paired_difference(worse, better, groups)
    assert difference.interval == (pytest.approx(-1 / 3), pytest.approx(-1 / 3))
    assert difference.verdict == "larger than chance"


def test_other_images_or_labels_are_not_compared_and_the_reason_is_named() -> None:
    ours, theirs = answers([True] * 3), answers([True] * 4)
    assert "different images: 3 shared of 3 and 4" in paired_difference(ours, theirs, {}).problem
    assert "0 shared" in paired_difference(ours, answers([True] * 3, "x"), {}).problem
    relabelled = {**ours, "0.png": ("normal", "covid")}
    difference = paired_difference(ours, relabelled, {})
    assert difference == Difference(problem="different labels: 1 of 3 images")
    assert difference.verdict == "not comparable"
