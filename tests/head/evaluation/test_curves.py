"""The interval of a ROC curve and the bins of a calibration plot."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from xfeat.head.evaluation.clustered import proportion_of
from xfeat.head.evaluation.curves import RocCurve, calibration_bins, roc_with_interval
from xfeat.head.evaluation.intervals import wilson_interval


def sample(positives: int, negatives: int, shift: float, *, per: int = 1, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Normal scores; with several images per patient, most of a score is the patient's."""
    rng, count = np.random.default_rng(seed), positives + negatives
    positive = np.repeat([True] * positives + [False] * negatives, per)
    patients = np.repeat(np.arange(count), per)
    noise = rng.normal(size=count)[patients] * np.sqrt(0.7) + rng.normal(size=count * per) * np.sqrt(0.3)
    return positive, noise + shift * positive, patients


def read(curve: RocCurve, rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    last = np.append(np.diff(curve.false_rate) > 0, True)
    return tuple(np.interp(rates, curve.false_rate[last], ends[last]) for ends in (curve.low, curve.high))


def test_the_curve_is_that_of_scikit_learn_and_lies_in_its_band() -> None:
    positive, scores, patients = sample(80, 90, 1.2)
    curve = roc_with_interval(positive, scores, patients)
    assert np.trapezoid(curve.true_rate, curve.false_rate) == pytest.approx(roc_auc_score(positive, scores))
    assert (curve.low <= curve.true_rate).all()
    assert (curve.true_rate <= curve.high).all()
    assert (np.diff(curve.low) >= 0).all()
    assert (np.diff(curve.high) >= 0).all()


@pytest.mark.slow
@pytest.mark.parametrize(("positives", "negatives", "per"), [(40, 60, 1), (30, 60, 3)])
def test_the_band_has_the_true_sensitivity_in_95_of_100_samples(positives: int, negatives: int, per: int) -> None:
    """By patient: independent images of the same number would give a band that is too narrow."""
    rates, inside = np.array([0.1, 0.2, 0.4]), []
    truth = norm.cdf(1.5 - norm.isf(rates))
    for seed in range(60):
        low, high = read(roc_with_interval(*sample(positives, negatives, 1.5, per=per, seed=seed)), rates)
        inside.append((low <= truth) & (truth <= high))
    assert np.mean(inside) >= 0.93


@pytest.mark.parametrize("count", [1, 2, 20, 300])
def test_a_perfect_curve_has_an_interval(count: int) -> None:
    """A bootstrap says 100 to 100 %; Wilson's interval of the positives is the reference."""
    positive = np.repeat([True, False], count)
    curve = roc_with_interval(positive, positive.astype(float), np.arange(2 * count))
    expected = wilson_interval(count, count)
    assert expected is not None
    assert curve.low[1] == pytest.approx(expected[0])
    assert curve.high[1] == 1


def test_copies_of_the_images_of_each_patient_do_not_narrow_the_band() -> None:
    positive, scores, patients = sample(30, 30, 1.0)
    alone = read(roc_with_interval(positive, scores, patients), np.array([0.3]))
    copied = read(roc_with_interval(*(np.repeat(each, 5) for each in (positive, scores, patients))), np.array([0.3]))
    assert copied[1] - copied[0] >= 0.95 * (alone[1] - alone[0])


KINDS = {
    "a hundred": (np.linspace(0, 1, 100), [20] * 5),
    "more": (np.linspace(0, 1, 1003), [201, 201, 201, 200, 200]),
    "fewer than forty": (np.linspace(0, 1, 39), [39]),
    "a few more than five bins have": (np.linspace(0, 1, 101), [21, 20, 20, 20, 20]),
    "four": (np.linspace(0, 1, 4), [4]),
    "one": (np.array([0.3]), [1]),
    "three bins": (np.linspace(0, 1, 75), [25, 25, 25]),
    "all equal": (np.full(200, 0.5), [200]),
    "most equal to 0": (np.append(np.zeros(150), np.linspace(0.1, 1, 50)), [150, 25, 25]),
    "few outside": (np.append(np.zeros(195), np.linspace(0.1, 1, 5)), [200]),
    "two values": (np.repeat([0.0, 1.0], 60), [60, 60]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_bins_have_the_same_count_as_far_as_equal_probabilities_allow(kind: str) -> None:
    predicted, expected = KINDS[kind]
    true = np.random.default_rng(0).random(len(predicted)) < predicted
    bins = calibration_bins(true, predicted[::-1], np.arange(len(predicted)))
    assert [each.images for each in bins] == expected
    assert len(bins) == 1 or min(expected) >= 20
    means = [each.predicted for each in bins]
    assert means == sorted(means)
    assert sum(mean * size for mean, size in zip(means, expected, strict=True)) == pytest.approx(predicted.sum())
    shares = [each.observed * each.images for each in bins]
    assert sum(shares) == pytest.approx(true.sum())


def test_the_interval_of_a_bin_is_by_patient() -> None:
    true = np.repeat([True, False, True, True], 5)
    patients = np.repeat(np.arange(4), 5)
    [found] = calibration_bins(true, np.full(20, 0.7), patients)
    expected = proportion_of(true, np.ones(20, bool), patients).to_dict()
    assert (found.observed, (found.low, found.high)) == (expected["value"], expected["interval"])
