"""The ood score against scikit-learn's Mahalanobis distance with the Ledoit-Wolf covariance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.covariance import LedoitWolf

from xfeat.export.build.ood_score import MAX_AXES, OodScore, fit_ood_score, fit_ood_threshold


def cloud(rows: int, dim: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(dim, dim)) / np.sqrt(dim)
    return (rng.normal(size=(rows, dim)) @ mixing + 3).astype(np.float32)


def scores(score: OodScore, rows: np.ndarray) -> np.ndarray:
    return score(torch.from_numpy(rows)).numpy()


@pytest.mark.parametrize(("rows", "dim"), [(200, 20), (60, 100)])  # fewer rows than features: none varies beyond them
def test_with_all_axes_the_score_is_scikit_learns_mahalanobis_distance(rows: int, dim: int) -> None:
    train, other = cloud(rows, dim), cloud(30, dim, seed=1) * 1.5
    mean, std = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
    reference = LedoitWolf().fit((train - mean) / std)
    expected = np.sqrt(reference.mahalanobis((other - mean) / std) / dim)
    assert_allclose(scores(fit_ood_score(train), other), expected, rtol=1e-4)


def test_training_rows_score_about_one_and_shifted_rows_more() -> None:
    score = fit_ood_score(cloud(400, 300))
    assert 0.5 < np.median(scores(score, cloud(400, 300))) < 1.2
    assert scores(score, cloud(50, 300) + 4).min() > 2 * scores(score, cloud(400, 300, seed=1)).max()


def test_a_shift_outside_the_principal_axes_has_a_high_score() -> None:
    dim = MAX_AXES + 100
    train = cloud(120, dim)
    score = fit_ood_score(train)
    direction = np.linalg.svd(train - train.mean(0))[2][-1]  # no training row varies along it
    assert scores(score, (train[:5] + 5 * direction).astype(np.float32)).min() > scores(score, train).max()


@pytest.mark.parametrize("dim", [20, MAX_AXES + 72])
def test_the_score_is_that_of_its_formula_in_float64(dim: int) -> None:
    score = fit_ood_score(cloud(150, dim))
    rows = cloud(9, dim, seed=3) * 2
    mean, inverse_scale, axes, precision = (each.double().numpy() for each in score.buffers())
    x = (rows - mean) * inverse_scale
    z = x @ axes.T
    squares = (z**2 * precision).sum(1) + ((x - z @ axes) ** 2).sum(1) / score.rest
    assert_allclose(scores(score, rows), np.sqrt(squares / dim), rtol=1e-4)


def test_features_that_never_vary_do_not_divide_by_zero() -> None:
    train = cloud(50, 10)
    train[:, 4] = 0
    score = fit_ood_score(train)
    assert np.isfinite(scores(score, train)).all()
    lit = train.copy()
    lit[:, 4] = 100
    assert scores(score, lit).min() > scores(score, train).max()


def test_identical_rows_give_finite_scores() -> None:
    train = np.ones((5, 8), np.float32)
    score = fit_ood_score(train)
    assert np.isfinite(scores(score, train)).all()
    assert scores(score, train + 1).min() > scores(score, train).max()


def test_the_threshold_is_the_95th_percentile() -> None:
    assert fit_ood_threshold(np.arange(101, dtype=float)) == 95
