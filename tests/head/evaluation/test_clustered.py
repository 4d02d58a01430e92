"""Estimates by patient, against statsmodels, plain loops and resampled patients."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from xfeat.head.evaluation.clustered import (
    auc_of,
    calibration_of,
    difference,
    mean_of,
    newcombe,
    proportion_of,
)
from xfeat.head.evaluation.intervals import Z, wilson_interval


def drawn(patients: int = 150, images: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return truth, log-odds and patients; images of one patient resemble each other."""
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(patients), images)
    own = rng.normal(size=patients)[codes]
    positive = rng.random(len(codes)) < 1 / (1 + np.exp(-own))
    return positive, 0.8 * own + rng.normal(size=len(codes)), codes


def error_of(influence: np.ndarray) -> float:
    return float(np.sqrt((influence**2).sum()))


@pytest.mark.slow  # importing statsmodels takes seconds
def test_a_proportion_has_the_clustered_error_of_statsmodels() -> None:
    import statsmodels.api as sm

    positive, odds, codes = drawn()
    found = proportion_of(odds > 0, positive, codes)
    right = (odds > 0)[positive].astype(float)
    groups = codes[positive]
    fit = sm.OLS(right, np.ones(len(right))).fit(
        cov_type="cluster", cov_kwds={"groups": groups, "use_correction": False}
    )
    count = len(np.unique(groups))
    assert found.value == pytest.approx(fit.params[0])
    assert error_of(found.influence) == pytest.approx(fit.bse[0] * np.sqrt(count / (count - 1)))
    low, high = found.limits(Z) or (0, 0)
    assert (high - low) / 2 == pytest.approx(Z * fit.bse[0], rel=0.1)


@pytest.mark.parametrize(("hits", "trials"), [(0, 9), (9, 9), (5, 9), (20, 21)])
def test_a_proportion_of_single_images_has_wilsons_interval(hits: int, trials: int) -> None:
    successes, every = np.arange(trials) < hits, np.ones(trials, np.bool_)
    assert proportion_of(successes, every, np.arange(trials)).limits(Z) == wilson_interval(hits, trials)


def test_all_right_is_as_certain_as_the_number_of_patients_allows() -> None:
    """100 images of 20 patients, all found: a bootstrap would say 100 to 100 %."""
    every = np.ones(100, np.bool_)
    low, high = proportion_of(every, every, np.repeat(np.arange(20), 5)).limits(Z) or (0, 0)
    assert high == 1
    assert wilson_interval(15, 15)[0] < low <= wilson_interval(25, 25)[0]  # type: ignore[index]


def test_an_auc_is_that_of_scikit_learn_with_delongs_variance() -> None:
    """Reference: scikit-learn; DeLong, DeLong and Clarke-Pearson 1988, written out as loops over pairs."""
    rng = np.random.default_rng(1)
    positive = rng.random(60) < 0.4
    scores = np.round(rng.normal(size=60) + positive, 1)  # with ties
    found = auc_of(positive, scores, np.arange(60), 60)
    assert found.value == pytest.approx(roc_auc_score(positive, scores))
    wins = np.array([[(a > b) + (a == b) / 2 for b in scores[~positive]] for a in scores[positive]])
    ones, zeros = wins.shape
    variance = wins.mean(1).var(ddof=1) / ones + wins.mean(0).var(ddof=1) / zeros
    assert error_of(found.influence) ** 2 == pytest.approx(variance)


def test_an_auc_of_clusters_has_obuchowskis_variance() -> None:
    """Reference: Obuchowski 1997, formula by formula."""
    positive, scores, codes = drawn(40, 3)
    found = auc_of(positive, scores, codes, 40)
    wins = (scores[positive][:, None] > scores[~positive][None, :]).astype(float)
    ones, zeros, area = *wins.shape, wins.mean()
    tens, ones_of = wins.mean(1), codes[positive]
    tails, zeros_of = wins.mean(0), codes[~positive]
    first = np.array([(tens[ones_of == g] - area).sum() for g in range(40)])
    second = np.array([(tails[zeros_of == g] - area).sum() for g in range(40)])
    ill, well = len(np.unique(ones_of)), len(np.unique(zeros_of))
    s10, s01 = ill / ((ill - 1) * ones) * (first**2).sum(), well / ((well - 1) * zeros) * (second**2).sum()
    s11 = np.sqrt(ill / (ill - 1) * well / (well - 1)) * (first * second).sum()
    assert error_of(found.influence) ** 2 == pytest.approx(s10 / ones + s01 / zeros + 2 * s11 / (ones * zeros))


@pytest.mark.slow
def test_intervals_are_as_wide_as_those_of_resampled_patients() -> None:
    """Reference: 1,000 draws of whole patients, scikit-learn's AUC of each."""
    positive, odds, codes = drawn(120, 3)
    rng, areas, hits = np.random.default_rng(0), [], []
    rows = [np.flatnonzero(codes == code) for code in range(120)]
    for _ in range(400):
        chosen = np.concatenate([rows[code] for code in rng.integers(0, 120, 120)])
        areas.append(roc_auc_score(positive[chosen], odds[chosen]))
        hits.append((odds[chosen] > 0)[positive[chosen]].mean())
    for estimate, values in (
        (auc_of(positive, odds, codes, 120), areas),
        (proportion_of(odds > 0, positive, codes), hits),
    ):
        assert error_of(estimate.influence) == pytest.approx(np.std(values), rel=0.12)
        assert estimate.limits(Z) == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.02)


def test_an_area_of_1_has_newcombes_interval() -> None:
    """Reference: the limits solve his equation; below 1 the interval meets DeLong's for many images."""
    low, high = newcombe(1.0, 20, 20, Z)
    spread = 1 + 19 * ((1 - low) / (2 - low) + low / (1 + low))
    assert (1 - low) ** 2 == pytest.approx(Z**2 * low * (1 - low) * spread / 400)
    assert high == 1
    positive = np.arange(40) < 20
    perfect = auc_of(positive, positive.astype(float), np.arange(40) // 2, 20)
    assert perfect.limits(Z) == newcombe(1.0, 10, 10, Z)  # patients, and not images
    assert newcombe(0.0, 20, 20, Z) == pytest.approx((0, 1 - low))


def test_one_patient_of_a_class_has_an_auc_without_an_interval() -> None:
    positive = np.arange(12) < 6
    found = auc_of(positive, np.linspace(1, 0, 12) * (positive - 0.5), np.where(positive, 0, np.arange(12)), 12)
    assert found.value is not None
    assert found.limits(Z) is None


@pytest.mark.slow
def test_calibration_is_that_of_statsmodels() -> None:
    """Reference: logistic regression with errors for clusters; the intercept with the log-odds as an offset."""
    import statsmodels.api as sm

    positive, odds, codes = drawn()
    found = calibration_of(positive, odds, codes, 150)
    options = {"cov_type": "cluster", "cov_kwds": {"groups": codes, "use_correction": False}}
    family, scale = sm.families.Binomial(), np.sqrt(150 / 149)
    joint = sm.GLM(positive.astype(float), sm.add_constant(odds), family=family).fit(**options)
    alone = sm.GLM(positive.astype(float), np.ones(len(odds)), offset=odds, family=family).fit(**options)
    for estimate, fit, place in ((found["slope"], joint, 1), (found["intercept"], alone, 0)):
        assert estimate.value == pytest.approx(fit.params[place], abs=1e-7)
        assert error_of(estimate.influence) == pytest.approx(fit.bse[place] * scale, rel=1e-5)


@pytest.mark.parametrize(
    ("positive", "odds", "slope", "intercept"),
    [
        ([True, True, True], [0.1, 2.0, -1.0], False, False),  # one class
        ([False, False, True, True], [-2.0, -1.0, 1.0, 2.0], False, True),  # separated: the slope is infinite
        ([False, True, False, True], [1.0, 1.0, 1.0, 1.0], False, True),  # one probability for all
        ([False, True, False, True], [-90.0, 90.0, 90.0, -90.0], True, False),  # probabilities of 0 and 1, half wrong
        ([True, False, True, False, True], [-3.0, -1.0, 0.0, 1.0, 2.0], True, True),
    ],
)
def test_calibration_is_undefined_where_it_has_no_answer(
    positive: list[bool], odds: list[float], slope: bool, intercept: bool
) -> None:
    found = calibration_of(np.array(positive), np.array(odds), np.arange(len(odds)), len(odds))
    assert (found["slope"].value is not None, found["intercept"].value is not None) == (slope, intercept)


@pytest.mark.slow
def test_a_paired_difference_is_narrower_and_is_that_of_resampled_patients() -> None:
    positive, odds, codes = drawn(150, 2)
    worse = odds + np.random.default_rng(5).normal(size=len(odds)) * 0.7
    first, second = (auc_of(positive, scores, codes, 150) for scores in (odds, worse))
    paired, apart = difference(first, second), difference(first, second, paired=False)
    assert paired is not None
    assert apart is not None
    assert paired[1] - paired[0] < 0.8 * (apart[1] - apart[0])
    rng, drops = np.random.default_rng(0), []
    rows = [np.flatnonzero(codes == code) for code in range(150)]
    for _ in range(300):
        chosen = np.concatenate([rows[code] for code in rng.integers(0, 150, 150)])
        drops.append(roc_auc_score(positive[chosen], odds[chosen]) - roc_auc_score(positive[chosen], worse[chosen]))
    assert paired == pytest.approx(np.quantile(drops, [0.025, 0.975]), abs=0.015)


def test_the_mean_of_one_area_is_that_area() -> None:
    positive, odds, codes = drawn(30, 2)
    one, other = auc_of(positive, odds, codes, 30), auc_of(~positive, -odds, codes, 30)
    assert mean_of([one, other]).value == pytest.approx(one.value)
    assert mean_of([one, other]).limits(Z) == pytest.approx(one.limits(Z))


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Reference: 600 draws of 40 patients with 3 images each; the truth from 60,000 patients."""
    positive, odds, codes = drawn(60_000, 3, seed=9)
    truth = {"auc": roc_auc_score(positive, odds), "sensitivity": (odds > -0.8)[positive].mean()}
    held = dict.fromkeys(truth, 0)
    for seed in range(600):
        positive, odds, codes = drawn(40, 3, seed=seed)
        estimates = {
            "auc": auc_of(positive, odds, codes, 40),
            "sensitivity": proportion_of(odds > -0.8, positive, codes),
        }
        for name, estimate in estimates.items():
            low, high = estimate.limits(Z) or (1, 0)
            held[name] += low <= truth[name] <= high
    for name, count in held.items():
        assert 0.925 <= count / 600 <= 0.99, name
