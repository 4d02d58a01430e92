"""The comparison of predictions on numbers that can be checked by hand, and the timing."""

from __future__ import annotations

import numpy as np
import pytest

from xfeat.export.parity.agreement import Agreement, compare
from xfeat.export.parity.checks import milliseconds_per_image


def decide(row: list[float]) -> str:
    return "a" if row[0] >= 0.5 else "b"


def agreement(expected: list[float], found: list[float], tolerance: float = 1e-4) -> Agreement:
    columns = [np.array([[p, 1 - p] for p in values], np.float32) for values in (expected, found)]
    return compare(*columns, decide, tolerance)


def test_equal_predictions_agree() -> None:
    result = agreement([0.2, 0.9], [0.2, 0.9])
    assert result.holds
    assert (result.images, result.max_difference, result.changed_decisions, result.close_calls) == (2, 0, 0, 0)


def test_differences_are_the_largest_and_the_mean_of_all_probabilities() -> None:
    result = agreement([0.2, 0.9], [0.25, 0.9], tolerance=0.1)
    assert result.max_difference == pytest.approx(0.05, abs=1e-6)
    assert result.mean_difference == pytest.approx(0.025, abs=1e-6)
    assert result.holds


def test_a_difference_above_the_tolerance_fails_even_if_no_decision_changes() -> None:
    assert not agreement([0.2], [0.201]).holds


def test_a_changed_decision_within_the_tolerance_is_a_close_call() -> None:
    result = agreement([0.500001, 0.7], [0.499999, 0.7])
    assert result.holds
    assert (result.changed_decisions, result.close_calls) == (0, 1)


def test_a_changed_decision_fails() -> None:
    result = agreement([0.6], [0.4], tolerance=0.1)
    assert not result.holds
    assert (result.changed_decisions, result.close_calls) == (1, 0)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_value_that_is_not_finite_never_agrees(broken: float) -> None:
    result = agreement([0.2, 0.3], [0.2, broken])
    assert not result.holds
    assert result.max_difference == np.inf


def test_the_time_per_image_is_the_median_of_five_calls_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The durations are 1, 2, 3, 4 and 100 seconds; a batch has 8 of the 20 images."""
    clock = iter([0, 1, 10, 12, 20, 23, 30, 34, 40, 140])
    monkeypatch.setattr("xfeat.export.parity.checks.time.perf_counter", lambda: next(clock))
    batches: list[int] = []
    assert milliseconds_per_image(lambda pixels: batches.append(len(pixels)), np.zeros((20, 4, 4, 3), np.uint8)) == 375
    assert batches == [8] * 6
