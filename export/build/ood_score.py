"""The out-of-distribution score of an image: the Mahalanobis distance of its features from the training features."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[np.float64]

# Share of the validation images that count as in distribution: the threshold is this quantile of their scores.
IN_DISTRIBUTION_SHARE = 0.95
# A matrix of all axes would be a third of the size of the backbone; the last ones share one variance.
MAX_AXES = 128
# Enough to estimate a covariance of some thousand dimensions, few enough for memory.
MAX_ROWS = 20_000
# Features that hardly vary in training are divided by this share of the median deviation, not by their own.
_FLOOR = 0.1


class OodScore(nn.Module):
    """A normal distribution over features: a variance per principal axis, and a common one for all other directions.

    Args:
        mean: (D,).
        scale: (D,), standard deviations.
        axes: (K, D), orthonormal rows, of the standardised features.
        variance: (K,), along the axes.
        rest: variance along every other direction.
    """

    mean: Tensor
    inverse_scale: Tensor
    axes: Tensor
    precision: Tensor

    def __init__(self, mean: Array, scale: Array, axes: Array, variance: Array, rest: float) -> None:
        super().__init__()
        arrays = {"mean": mean, "inverse_scale": 1 / scale, "axes": axes, "precision": 1 / variance}
        for name, array in arrays.items():
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(array, np.float32)))
        self.rest = rest

    def forward(self, features: Tensor) -> Tensor:
        """Return ood scores (N,) of features (N, D)."""
        x = (features - self.mean) * self.inverse_scale
        z = torch.matmul(x, self.axes.T)
        residual = x - torch.matmul(z, self.axes)
        squares = (z * z * self.precision).sum(1) + (residual * residual).sum(1) / self.rest
        return torch.sqrt(squares / x.shape[1])


def fit_ood_score(features: NDArray[np.floating]) -> OodScore:
    """Fit the ood score to the features (n, D) of training images, whose own scores are about 1.

    Source: the shrinkage is Ledoit and Wolf's (2004), by scikit-learn; the Mahalanobis distance as ood score is from
    Lee et al. 2018 (arXiv:1807.03888), here with one centre. Directions beyond the first MAX_AXES share one variance,
    as in probabilistic PCA (Tipping and Bishop 1999), so that an image outside the subspace of the training images also
    has a high score.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage

    step = -(-len(features) // MAX_ROWS)
    rows = np.asarray(features[::step], np.float64)
    mean, deviation = rows.mean(0), rows.std(0)
    floor = _FLOOR * float(np.median(deviation))
    scale = np.maximum(deviation, floor if floor > 0 else 1.0)
    x = (rows - mean) / scale
    count, dim = x.shape
    k = min(MAX_AXES, dim - 1, count)
    shrinkage, average = ledoit_wolf_shrinkage(x, assume_centered=True), float(np.square(x).mean())
    variances, axes = _principal_axes(x, k)
    # Shrinkage moves every variance towards the average one, and rotates no axis.
    variances = (1 - shrinkage) * variances + shrinkage * average
    # If no feature varied at all, there would be no variance to divide by.
    smallest = max(float(variances[0]) * 1e-6, 1e-12)
    rest = max(float(dim * average - variances.sum()) / (dim - k), smallest)
    return OodScore(mean, scale, axes, np.maximum(variances, smallest), rest)


def _principal_axes(x: Array, k: int) -> tuple[Array, Array]:
    """Return the largest variances (K,) of centred rows (n, D), and their axes (K, D)."""
    count, dim = x.shape
    if count < dim:  # much less work than all axes of the covariance, most of which have variance 0
        _, lengths, axes = np.linalg.svd(x, full_matrices=False)
        return lengths[:k] ** 2 / count, axes[:k]
    variances, vectors = np.linalg.eigh(x.T @ x / count)  # ascending
    return variances[::-1][:k], vectors[:, ::-1][:, :k].T


def fit_ood_threshold(scores: NDArray[np.floating]) -> float:
    """Return the score above which an image counts as out of distribution, from those of validation images."""
    return float(np.quantile(scores, IN_DISTRIBUTION_SHARE))
