"""The ood score against scikit-learn's nearest neighbours, and kinds of features that it must find."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from xfeat.export.build.ood_score import MAX_AXES, MAX_NEIGHBOURS, OodScore, fit_ood_score, fit_ood_threshold
from xfeat.featurize.engines.conversion import to_onnx


def cloud(rows: int, dim: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(dim, dim)) / np.sqrt(dim)
    return (rng.normal(size=(rows, dim)) @ mixing + 3).astype(np.float32)


def scores(score: OodScore, rows: np.ndarray) -> np.ndarray:
    return score(torch.from_numpy(rows)).numpy()


@pytest.mark.parametrize(("rows", "dim"), [(200, 20), (60, 100), (7, 30)])
def test_with_all_axes_the_score_is_the_distance_to_the_nearest_rows_in_their_radii(rows: int, dim: int) -> None:
    features, others = cloud(rows, dim), cloud(30, dim, seed=1) * 1.5
    length = np.log(np.linalg.norm(features, axis=1))
    weight = 0.25 * np.sqrt(normalize(features).var(0).sum()) / length.std()

    def placed(x: np.ndarray) -> np.ndarray:
        return np.column_stack([normalize(x.astype(np.float64)), weight * np.log(np.linalg.norm(x, axis=1))])

    train = placed(features)
    near = NearestNeighbors(n_neighbors=min(10, rows - 1) + 1).fit(train)
    radius = near.kneighbors(train)[0][:, -1]  # the first neighbour of a row is itself
    distances = np.linalg.norm(placed(others)[:, None] - train, axis=2) / radius
    assert_allclose(scores(fit_ood_score(features), others), np.sort(distances, axis=1)[:, 4], rtol=1e-3)


KINDS = {
    "blank: nearly no response": lambda rows: rows * 0 + 1e-4 * np.arange(rows.shape[1], dtype=np.float32),
    "blank: no response at all": lambda rows: rows * 0,
    "other features": lambda rows: rows[:, ::-1].copy() * np.linspace(0.2, 3, rows.shape[1], dtype=np.float32),
    "one feature alone": lambda rows: np.eye(rows.shape[1], dtype=np.float32)[: len(rows)] * 50,
    "outside the axes": lambda rows: rows + 20 * np.sign(np.linspace(-1, 1, rows.shape[1], dtype=np.float32)),
}


@pytest.mark.parametrize("dim", [40, MAX_AXES + 100])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("encoder", ["means of maps, never negative", "a vector of any sign", "of length 1"])
def test_every_kind_is_above_the_threshold(encoder: str, kind: str, dim: int) -> None:
    def encoded(rows: np.ndarray) -> np.ndarray:
        if encoder.startswith("means"):
            return np.maximum(rows, 0)
        return rows - 3.5 if encoder.endswith("sign") else np.asarray(normalize(rows), np.float32)

    score = fit_ood_score(encoded(cloud(300, dim)))
    threshold = fit_ood_threshold(scores(score, encoded(cloud(100, dim, seed=1))))
    assert (scores(score, encoded(cloud(100, dim, seed=2))) > threshold).mean() < 0.15
    if encoder == "of length 1" and kind == "blank: no response at all":
        pytest.skip("such an encoder does not return it")
    assert scores(score, encoded(KINDS[kind](cloud(30, dim, seed=3)))).min() > threshold


@pytest.mark.parametrize(
    ("name", "train"),
    {
        "identical": np.ones((5, 8), np.float32),
        "two rows": cloud(2, 8),
        "half of them copies": np.concatenate([cloud(30, 8), cloud(1, 8, seed=5).repeat(30, 0)]),
        "a feature that never varies": cloud(50, 8) * (np.arange(8) != 4),
        "all zero": np.zeros((5, 8), np.float32),
        "more than are stored": cloud(MAX_NEIGHBOURS + 5, 8),
    }.items(),
)
def test_scores_are_finite_and_higher_far_away(name: str, train: np.ndarray) -> None:
    score = fit_ood_score(train)
    assert np.isfinite(scores(score, train)).all()
    far = np.eye(8, dtype=np.float32)[[4]] * 100
    assert scores(score, far).min() > np.quantile(scores(score, train), 0.95)
    assert score.columns.shape[1] <= MAX_NEIGHBOURS


def test_features_that_are_no_numbers_have_no_score() -> None:
    assert np.isnan(scores(fit_ood_score(cloud(50, 8)), np.full((1, 8), np.nan, np.float32))).all()


def test_in_onnx_the_score_is_the_same() -> None:
    score, rows = (
        fit_ood_score(cloud(150, 40)),
        np.concatenate([cloud(9, 40, seed=3) * 2, np.zeros((1, 40), np.float32)]),
    )
    model = to_onnx(score, torch.zeros((2, 40)), input_name="x", output_names=["ood"], dynamic={0: "N"})
    session = onnxruntime.InferenceSession(model.SerializeToString())
    assert_allclose(session.run(None, {"x": rows})[0], scores(score, rows), rtol=1e-4)


def test_the_threshold_is_the_95th_percentile() -> None:
    assert fit_ood_threshold(np.arange(101, dtype=float)) == 95
