"""The operating point is chosen on validation alone and says what it rests on."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xfeat.featurize.errors import DataError
from xfeat.head.evaluation.assess import assess
from xfeat.head.evaluation.intervals import wilson_interval
from xfeat.head.evaluation.operating_point import (
    PREVALENCES,
    OperatingPoint,
    choose_operating_point,
    choose_threshold,
    positives_needed,
    predictive_values,
    threshold_metrics,
)
from xfeat.head.evaluation.predictions import Predictions
from xfeat.head.specs import TargetSpec


def proportion(successes: int, trials: int) -> dict[str, object]:
    return {"value": successes / trials if trials else None, "interval": wilson_interval(successes, trials)}


NAMES = ("covid", "normal")


def drawn(valid: int = 200, test: int = 100, seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    count = valid + test
    labels = np.arange(count) % 2
    logits = (rng.normal(size=(count, 2)) + 2 * np.eye(2)[labels]).astype(np.float32)
    return Predictions([f"{row}.png" for row in range(count)], ["valid"] * valid + ["test"] * test, labels, logits)


def brute_force(positive: np.ndarray, scores: np.ndarray, target: float) -> set[tuple[int, int]]:
    """Return the best numbers of false alarms and of positives found: every score and more are tried in float32."""
    counts = []
    for threshold in {0.0, *scores.tolist(), *np.nextafter(scores, np.float32(2)).tolist()}:
        called = scores >= np.float32(threshold)
        if called[positive].sum() >= target * positive.sum() - 1e-9 and called[positive].any():
            counts.append((int(called[~positive].sum()), -int(called[positive].sum())))
    return {min(counts)}


PROBABILITIES = st.one_of(
    st.integers(0, 8).map(lambda share: share / 8),
    st.floats(0, 1, width=32),
    st.sampled_from([0.0, 1.0, 1e-45, 1 - 2.0**-24, 0.5, 0.5 + 2.0**-24]),
)


@given(
    st.lists(st.tuples(st.booleans(), PROBABILITIES), min_size=1, max_size=40).filter(
        lambda rows: any(positive for positive, _ in rows)
    ),
    st.sampled_from([0.01, 0.5, 0.8, 0.9, 0.95, 0.99, 1.0]),
)
@settings(deadline=None)
def test_the_threshold_has_the_highest_specificity_and_then_sensitivity_that_reach_the_target(
    rows: list[tuple[bool, float]], target: float
) -> None:
    """Reference: all thresholds that decide differently, tried one by one."""
    positive = np.array([is_positive for is_positive, _ in rows])
    scores = np.array([score for _, score in rows], np.float32)
    threshold = choose_threshold(positive, scores, target)
    assert threshold == np.float32(threshold)
    for called in (scores >= threshold, scores.astype(np.float64) >= threshold, [p >= threshold for p in scores]):
        called = np.asarray(called)
        assert {(int(called[~positive].sum()), -int(called[positive].sum()))} == brute_force(positive, scores, target)


def logit(p: float) -> float:
    return float(np.log(p / (1 - p)))


@pytest.mark.parametrize(
    ("positives", "negatives", "target", "lowest_called", "highest_not"),
    [
        ([0.86, 0.9, 0.95], [0.1, 0.2], 0.95, 0.86, 0.2),
        ([0.75] + [0.9] * 19, [0.26, 0.1], 0.95, 0.75, 0.26),  # 95 % would do: all of them cost no false alarm
        ([0.3] + [0.9] * 19, [0.4, 0.1], 0.95, 0.9, 0.4),  # the last positive would cost one
        ([0.8], [0.4], 0.9, 0.8, 0.4),  # one positive
        ([0.6, 0.7], [0.6, 0.5], 1.0, 0.6, 0.5),  # a tie of both classes is called positive
        ([0.9, 0.9, 0.9], [0.9, 0.2], 0.5, 0.9, 0.2),
        ([0.9999], [0.99], 0.95, 0.9999, 0.99),
    ],
)
def test_the_threshold_is_the_middle_of_the_gap_in_logits(
    positives: list[float], negatives: list[float], target: float, lowest_called: float, highest_not: float
) -> None:
    positive = np.array([True] * len(positives) + [False] * len(negatives))
    found = choose_threshold(positive, np.array(positives + negatives), target)
    assert logit(found) == pytest.approx((logit(lowest_called) + logit(highest_not)) / 2, abs=1e-4)


@pytest.mark.parametrize(
    ("positives", "negatives", "called"),
    [
        ([0.1, 0.2], [0.8, 0.9], 4),  # all positives below all negatives: everything is called positive
        ([0.0], [0.5], 2),
        ([0.3], [], 1),
        ([1.0], [1.0 - 2.0**-24], 1),  # neighbours in float32
        ([1.0, 1.0], [0.0], 2),
    ],
)
def test_a_threshold_at_the_edge_decides_what_it_was_chosen_for(
    positives: list[float], negatives: list[float], called: int
) -> None:
    positive = np.array([True] * len(positives) + [False] * len(negatives))
    scores = np.array(positives + negatives, np.float32)
    threshold = choose_threshold(positive, scores, 1.0)
    assert 0 <= threshold <= 1
    assert int((scores >= threshold).sum()) == called


def test_test_rows_do_not_influence_the_threshold() -> None:
    predictions, target = drawn(), TargetSpec(positive="covid", target_sensitivity=0.9)
    is_test = np.array(predictions.split) == "test"
    shuffled = replace(predictions, labels=np.where(is_test, 1 - predictions.labels, predictions.labels))
    first, second = (choose_operating_point(p, NAMES, target) for p in (predictions, shuffled))
    assert first.threshold == second.threshold
    assert first.valid == second.valid
    assert first.test != second.test


def test_threshold_metrics_are_counted_from_the_decisions() -> None:
    """Reference: counts in a plain loop, Wilson's interval through scipy."""
    rng = np.random.default_rng(0)
    positive, scores = rng.random(50) < 0.4, rng.random(50)
    found = threshold_metrics(positive, scores, 0.3)
    counts = {(truth, call): 0 for truth in (True, False) for call in (True, False)}
    for truth, score in zip(positive.tolist(), scores.tolist(), strict=True):
        counts[truth, score >= 0.3] += 1
    hits, misses, alarms, quiet = (counts[key] for key in ((True, True), (True, False), (False, True), (False, False)))
    assert [found[k] for k in ("true_positive", "false_negative", "false_positive", "true_negative")] == [
        hits,
        misses,
        alarms,
        quiet,
    ]
    assert found["sensitivity"] == {"value": hits / (hits + misses), "interval": wilson_interval(hits, hits + misses)}
    assert found["npv"] == {"value": quiet / (quiet + misses), "interval": wilson_interval(quiet, quiet + misses)}


@pytest.mark.parametrize("target", [0.8, 0.9, 0.95, 0.99])
def test_the_number_of_positives_needed_is_the_fewest_that_suffice(target: float) -> None:
    """Reference: Wilson's interval through scipy, one less and exactly as many."""
    needed = positives_needed(target)
    assert needed is not None
    assert wilson_interval(needed, needed)[0] >= target > wilson_interval(needed - 1, needed - 1)[0]  # type: ignore[index]


def test_no_number_of_images_supports_a_sensitivity_of_1() -> None:
    assert positives_needed(1.0) is None


def test_too_few_positives_are_named() -> None:
    found = choose_operating_point(drawn(valid=40), NAMES, TargetSpec(positive="covid", target_sensitivity=0.99))
    assert found.supported is False
    assert "20 positive images" in found.note
    assert "at least 381" in found.note


def test_enough_positives_need_no_note() -> None:
    found = choose_operating_point(drawn(valid=2000), NAMES, TargetSpec(positive="covid", target_sensitivity=0.95))
    # little more than the target is found, so that the interval reaches below it
    assert found.supported is False
    sure = drawn(valid=2000)
    sure = replace(sure, logits=(20 * np.eye(2)[sure.labels]).astype(np.float32))
    found = choose_operating_point(sure, NAMES, TargetSpec(positive="covid", target_sensitivity=0.99))
    assert (found.supported, found.note) == (True, "")


@pytest.mark.parametrize("prevalence", PREVALENCES)
def test_predictive_values_follow_a_counted_population(prevalence: float) -> None:
    """Reference: a million people counted out."""
    ill = prevalence * 1e6
    found = predictive_values(proportion(90, 100), proportion(160, 200), prevalence)
    assert found["ppv"] == pytest.approx(0.9 * ill / (0.9 * ill + 0.2 * (1e6 - ill)))
    assert found["npv"] == pytest.approx(0.8 * (1e6 - ill) / (0.8 * (1e6 - ill) + 0.1 * ill))


@pytest.mark.parametrize("prevalence", PREVALENCES)
def test_intervals_of_predictive_values_are_those_of_the_logit_method_for_many_images(prevalence: float) -> None:
    """Reference: Mercaldo, Lau and Zhou, "Confidence intervals for predictive values with an emphasis to case-control
    studies", 2007: the delta method on the logit, which is good for many images and has none for a share of 1."""
    ill, well, hits, quiet = 20_000, 50_000, 17_000, 46_000
    found = predictive_values(proportion(hits, ill), proportion(quiet, well), prevalence)
    sensitivity, specificity, odds = hits / ill, quiet / well, prevalence / (1 - prevalence)
    for name, logit, variance in (
        (
            "ppv",
            np.log(sensitivity / (1 - specificity) * odds),
            (1 - sensitivity) / sensitivity / ill + specificity / (1 - specificity) / well,
        ),
        (
            "npv",
            np.log(specificity / (1 - sensitivity) / odds),
            sensitivity / (1 - sensitivity) / ill + (1 - specificity) / specificity / well,
        ),
    ):
        ends = [1 / (1 + np.exp(-(logit + sign * 1.959964 * np.sqrt(variance)))) for sign in (-1, 1)]
        assert found[f"{name}_interval"] == pytest.approx(ends, abs=1e-3, rel=5e-3)


def test_intervals_of_predictive_values_hold_the_truth_as_often_as_they_say() -> None:
    """Reference: 4000 draws of 20 ill and 80 well, for sensitivities near 1, where the logit method fails."""
    rng = np.random.default_rng(0)
    prevalence = 0.05
    for sensitivity, specificity in ((0.95, 0.98), (0.8, 0.9), (0.6, 0.995)):
        truth = {
            "ppv": sensitivity * prevalence / (sensitivity * prevalence + (1 - specificity) * (1 - prevalence)),
            "npv": specificity * (1 - prevalence) / (specificity * (1 - prevalence) + (1 - sensitivity) * prevalence),
        }
        # each pair of counts is looked at once and counts as often as it was drawn
        counts = np.stack([rng.binomial(20, sensitivity, 4000), rng.binomial(80, specificity, 4000)], 1)
        pairs, times = np.unique(counts, axis=0, return_counts=True)
        for name in ("ppv", "npv"):
            ends = [
                predictive_values(proportion(int(h), 20), proportion(int(q), 80), prevalence)[f"{name}_interval"]
                for h, q in pairs
            ]
            held = sum(n for (low, high), n in zip(ends, times, strict=True) if low <= truth[name] <= high) / 4000
            # 0.924 is what Wilson gives for 0.95 of 20 alone
            assert 0.92 <= held <= 0.998, (name, sensitivity, specificity, held)


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.floats(0, 1), st.sampled_from(PREVALENCES))
@settings(deadline=None)
def test_an_interval_of_a_predictive_value_lies_around_it(
    ill: int, well: int, found: float, quiet: float, prevalence: float
) -> None:
    values = predictive_values(proportion(round(found * ill), ill), proportion(round(quiet * well), well), prevalence)
    for name in ("ppv", "npv"):
        if values[name] is None:
            assert values[f"{name}_interval"] is None
            continue
        low, high = values[f"{name}_interval"]
        assert 0 <= low <= values[name] + 1e-12
        assert values[name] - 1e-12 <= high <= 1


def test_predictive_values_need_images_of_both_kinds() -> None:
    assert set(predictive_values(proportion(0, 0), proportion(3, 4), 0.1).values()) == {None}
    assert predictive_values(proportion(0, 5), proportion(4, 4), 0.1)["ppv"] is None


def test_an_unknown_class_is_an_error() -> None:
    with pytest.raises(DataError, match="there is no class flu"):
        choose_operating_point(drawn(), NAMES, TargetSpec(positive="flu"))


def test_a_class_without_validation_images_has_no_threshold() -> None:
    predictions = drawn()
    with pytest.raises(DataError, match="there is no validation image of class covid"):
        choose_operating_point(replace(predictions, labels=np.ones(300, np.int64)), NAMES, TargetSpec(positive="covid"))


def test_assessing_sets_temperature_and_threshold_and_keeps_the_accuracy() -> None:
    predictions = drawn()
    assessed = assess(predictions, NAMES, target=TargetSpec(positive="covid", target_sensitivity=0.9))
    plain = assess(predictions, NAMES, calibrate=False)
    assert assessed.predictions.temperature == assessed.calibration["temperature"] != 1
    assert assessed.predictions.positive == 0
    assert assessed.metrics["test"]["accuracy"] == plain.metrics["test"]["accuracy"]
    assert assessed.calibration["before"]["test"]["loss"] == plain.metrics["test"]["loss"]
    assert assessed.calibration["after"]["valid"]["loss"] < assessed.calibration["before"]["valid"]["loss"]
    assert plain.calibration["temperature"] == 1
    assert plain.operating_point is None


def test_an_operating_point_survives_json() -> None:
    target = TargetSpec(positive="covid", target_sensitivity=0.9)
    for predictions in (drawn(), drawn(test=0)):
        point = choose_operating_point(predictions, NAMES, target)
        stored = json.loads(json.dumps(point.to_dict()))
        assert ("test" in stored) == (point.test is not None)
        assert json.loads(json.dumps(OperatingPoint.from_dict(stored).to_dict())) == stored
