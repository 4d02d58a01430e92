"""Figures against scikit-learn called directly, and formulas written out."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, bootstrap
from sklearn import metrics as sk

from xfeat.head.evaluation.assess import fit_temperature
from xfeat.head.evaluation.intervals import grouped_interval, wilson_interval
from xfeat.head.evaluation.metrics import classification_metrics, expected_calibration_error
from xfeat.head.evaluation.predictions import decide, softmax


def drawn(classes: int, count: int = 90, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    logits = rng.normal(size=(count, classes)) + 1.5 * np.eye(classes)[labels]
    return labels, logits.astype(np.float32)


@pytest.mark.parametrize("classes", [2, 3])
def test_metrics_are_scikit_learns(classes: int) -> None:
    labels, logits = drawn(classes)
    p = softmax(logits)
    found = classification_metrics(labels, p, [f"c{code}" for code in range(classes)])
    predicted = p.argmax(1)
    assert found["accuracy"] == sk.accuracy_score(labels, predicted)
    assert found["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels, predicted))
    assert found["confusion_matrix"] == sk.confusion_matrix(labels, predicted).tolist()
    assert found["loss"] == pytest.approx(sk.log_loss(labels, p.astype(float) / p.astype(float).sum(1)[:, None]))
    auc = sk.roc_auc_score(labels, p[:, 1]) if classes == 2 else sk.roc_auc_score(labels, p, multi_class="ovr")
    assert found["auc"] == pytest.approx(auc)
    assert found["brier"] == pytest.approx(np.mean(((p - np.eye(classes)[labels]) ** 2).sum(1)), rel=1e-5)
    for code in range(classes):
        row = found["classes"][f"c{code}"]
        assert row["sensitivity"] == pytest.approx(sk.recall_score(labels == code, predicted == code))
        assert row["specificity"] == pytest.approx(sk.recall_score(labels != code, predicted != code))
        assert row["ppv"] == pytest.approx(sk.precision_score(labels == code, predicted == code))
        assert row["npv"] == pytest.approx(sk.precision_score(labels != code, predicted != code))


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_certain_and_tied_predictions_have_scikit_learns_figures(data: st.DataObject) -> None:
    """Few distinct probabilities, 0 and 1 among them."""
    shares = data.draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=4, max_size=20))
    labels = np.array(
        [0, 1, *data.draw(st.lists(st.integers(0, 1), min_size=len(shares) - 2, max_size=len(shares) - 2))]
    )
    p = np.array([(1 - share, share) for share in shares])
    found = classification_metrics(labels, p, ["a", "b"])
    assert found["auc"] == pytest.approx(sk.roc_auc_score(labels, p[:, 1]))
    assert found["loss"] == pytest.approx(sk.log_loss(labels, p))
    assert found["brier"] == pytest.approx(sk.brier_score_loss(labels, p, scale_by_half=False))
    assert found["accuracy_interval"] == pytest.approx(
        binomtest(int((p.argmax(1) == labels).sum()), len(labels)).proportion_ci(method="wilson"), abs=1e-12
    )


def test_an_absent_class_gives_no_figures_and_no_warning() -> None:
    labels, logits = drawn(3)
    present = labels != 2
    found = classification_metrics(labels[present], softmax(logits[present]), ["a", "b", "c"])
    assert found["auc"] is None
    assert found["classes"]["c"]["sensitivity"] is None
    assert found["classes"]["c"]["auc"] is None
    assert np.shape(found["confusion_matrix"]) == (3, 3)
    assert found["balanced_accuracy"] == np.mean([found["classes"][name]["sensitivity"] for name in "ab"])


def test_a_class_that_is_never_predicted_has_no_ppv() -> None:
    found = classification_metrics(np.array([0, 1]), np.array([[0.9, 0.1], [0.8, 0.2]]), ["a", "b"])
    assert found["classes"]["b"]["ppv"] is None


@given(st.integers(1, 500), st.data())
@settings(deadline=None, max_examples=30)
def test_wilsons_interval_is_its_formula(trials: int, data: st.DataObject) -> None:
    """Reference: Wilson 1927, written out."""
    successes = data.draw(st.integers(0, trials))
    z, p = NormalDist().inv_cdf(0.975), successes / trials
    centre = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * np.sqrt(p * (1 - p) / trials + z * z / (4 * trials**2))
    found = wilson_interval(successes, trials)
    assert found == pytest.approx((max(0, centre - half), min(1, centre + half)), abs=1e-9)


def test_no_trials_have_no_interval() -> None:
    assert wilson_interval(0, 0) is None


def test_the_grouped_interval_is_wider_when_patients_repeat() -> None:
    rng = np.random.default_rng(0)
    values = (rng.random(60) < 0.8).astype(float)
    alone = grouped_interval(np.repeat(values, 4), np.arange(240).astype(str), seed=0)
    grouped = grouped_interval(np.repeat(values, 4), np.repeat(np.arange(60), 4).astype(str), seed=0)
    assert alone is not None
    assert grouped is not None
    assert grouped[1] - grouped[0] > 1.5 * (alone[1] - alone[0])
    assert grouped[0] < values.mean() < grouped[1]


def test_the_grouped_interval_is_that_of_a_plain_bootstrap() -> None:
    """Reference: groups drawn with replacement in a loop; percentiles agree within the noise of 2000 draws."""
    rng = np.random.default_rng(1)
    groups = rng.integers(0, 40, 150)
    values = (rng.random(150) < 0.7).astype(float)
    members = [values[groups == group] for group in np.unique(groups)]
    means = [
        np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))]).mean() for _ in range(2000)
    ]
    found = grouped_interval(values, groups.astype(str), seed=0)
    assert found == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.02)


def test_the_grouped_interval_is_scipys_bootstrap() -> None:
    rng = np.random.default_rng(4)
    values, groups = rng.integers(0, 2, 90).astype(float), rng.integers(0, 30, 90)
    sums, sizes = np.bincount(groups, weights=values), np.bincount(groups)
    sums, sizes = sums[sizes > 0], sizes[sizes > 0]
    right = bootstrap(
        (sums, sizes),
        lambda sums, sizes, axis=-1: sums.sum(axis=axis) / sizes.sum(axis=axis),
        paired=True,
        n_resamples=2000,
        batch=200,
        method="percentile",
        rng=np.random.default_rng(7),
    ).confidence_interval
    assert grouped_interval(values, groups, seed=7) == pytest.approx((right.low, right.high), abs=1e-12)


def test_one_group_has_no_interval() -> None:
    assert grouped_interval(np.ones(3), np.array(["a"] * 3), seed=0) is None


def test_the_calibration_error_is_a_loop_over_bins() -> None:
    """Reference: Naeini et al. 2015, bin by bin."""
    labels, logits = drawn(3, 400)
    p = softmax(logits)
    confidence, right, expected = p.max(1), p.argmax(1) == labels, 0.0
    for number in range(15):
        inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert expected_calibration_error(labels, p) == pytest.approx(expected, abs=1e-6)


def test_certain_and_correct_predictions_have_no_calibration_error() -> None:
    assert expected_calibration_error(np.array([0, 1]), np.eye(2)) == 0


@pytest.mark.parametrize("true", [0.5, 1.0, 2.5])
def test_a_known_temperature_is_recovered(true: float) -> None:
    """Labels are drawn from softmax(logits); what is given is logits times ``true``."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 3)) * 2
    labels = (softmax(logits).cumsum(1) < rng.random((20_000, 1))).sum(1).clip(max=2)
    assert fit_temperature(labels, logits * true)[0] == pytest.approx(true, rel=0.05)


@pytest.mark.slow
def test_the_temperature_is_the_minimum_on_a_grid() -> None:
    """Reference: cross entropy against Platt's targets through scikit-learn's log_loss, on a grid."""
    labels, logits = drawn(2, 80)
    spread = 2 / 82

    def loss(temperature: float) -> float:
        p = softmax(logits, temperature).astype(float)
        p /= p.sum(1, keepdims=True)
        every = [sk.log_loss(np.full(80, code), p, labels=[0, 1]) for code in (0, 1)]
        return float((1 - spread) * sk.log_loss(labels, p) + spread * np.mean(every))

    grid = np.geomspace(0.2, 5, 400)
    best = grid[int(np.argmin([loss(temperature) for temperature in grid]))]
    assert fit_temperature(labels, logits)[0] == pytest.approx(best, rel=0.02)


@pytest.mark.parametrize(("labels", "reason"), [(np.arange(20) % 2, "fewer than 30"), (np.zeros(50, int), "one class")])
def test_too_little_to_fit_leaves_the_temperature_at_1_and_says_why(labels: np.ndarray, reason: str) -> None:
    temperature, note = fit_temperature(labels, np.random.default_rng(0).normal(size=(len(labels), 2)))
    assert temperature == 1
    assert reason in note


def test_faultless_validation_rows_do_not_ask_for_endless_sharpness() -> None:
    labels = np.arange(100) % 2
    logits = 3.0 * np.eye(2)[labels] + np.random.default_rng(0).normal(size=(100, 2)) * 0.1
    assert 0.3 < fit_temperature(labels, logits)[0] < 1


def test_a_temperature_changes_no_most_probable_class() -> None:
    _, logits = drawn(3)
    assert (softmax(logits, 0.3).argmax(1) == logits.argmax(1)).all()


def test_a_threshold_decides_for_its_class_and_else_for_the_best_of_the_rest() -> None:
    p = np.array([[0.5, 0.3, 0.2], [0.6, 0.1, 0.3], [0.1, 0.29, 0.61], [0.3, 0.4, 0.3]])
    assert decide(p, None, 0.5).tolist() == [0, 0, 2, 1]
    assert decide(p, 1, 0.3).tolist() == [1, 0, 2, 1]
    assert decide(p, 1, 0.5).tolist() == [0, 0, 2, 0]
