"""How far an image lies from the training images: the Mahalanobis distance of its features, covariance shrunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

# Share of the validation images that count as familiar: the threshold is this quantile of their distances.
IN_DISTRIBUTION_SHARE = 0.95
# A matrix of all directions would weigh a third of the backbone; what the last ones add is measured together.
MAX_AXES = 128
# Enough to estimate a covariance of some thousand dimensions, and little enough for memory.
MAX_ROWS = 20_000
# Features that hardly vary in training are not divided by their tiny deviation but by this share of the median one.
_FLOOR = 0.1


@dataclass(frozen=True, kw_only=True)
class Distance:
    """A normal distribution over features: few principal axes of their own variance, all others of a common one.

    Attributes:
        mean: float32 (D,).
        scale: float32 (D,), standard deviations.
        axes: float32 (K, D), orthonormal rows, of the standardised features.
        variance: float32 (K,), along the axes.
        rest: variance along every other direction.
    """

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    axes: NDArray[np.float32]
    variance: NDArray[np.float32]
    rest: float

    def __call__(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return distances (n,) of features (n, D)."""
        x = (features.astype(np.float64) - self.mean) / self.scale
        z = x @ self.axes.T
        aside = x - z @ self.axes
        squares = (z**2 / self.variance).sum(1) + (aside**2).sum(1) / self.rest
        return cast(NDArray[np.float64], np.sqrt(squares / x.shape[1]))


def fit_ood_score(features: NDArray[np.floating]) -> Distance:
    """Fit a distance to the features (n, D) of training images; theirs is about 1.

    Source: the shrinkage is Ledoit and Wolf's (2004), by scikit-learn; the distance as a sign of foreign images is from
    Lee et al. 2018 (arXiv:1807.03888), here with one centre. Directions beyond the first MAX_AXES share one variance,
    as in probabilistic PCA (Tipping and Bishop 1999), so that an image that leaves the space of the training images
    altogether is still far away.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage

    step = -(-len(features) // MAX_ROWS)
    rows = np.asarray(features[::step], np.float64)
    mean, deviation = rows.mean(0), rows.std(0)
    floor = _FLOOR * float(np.median(deviation))
    scale = np.maximum(deviation, floor if floor > 0 else 1.0)
    x = (rows - mean) / scale
    count, dim = x.shape
    kept = min(MAX_AXES, dim - 1, count)
    shrinkage, average = ledoit_wolf_shrinkage(x, assume_centered=True), float(np.square(x).mean())
    variances, axes = _principal_axes(x, kept)
    # Shrinking draws every variance towards the average one, and turns no axis.
    variances = (1 - shrinkage) * variances + shrinkage * average
    # Features that never vary, all of them, would leave no variance to divide by.
    smallest = max(float(variances[0]) * 1e-6, 1e-12)
    return Distance(
        mean=mean.astype(np.float32),
        scale=scale.astype(np.float32),
        axes=np.ascontiguousarray(axes, dtype=np.float32),
        variance=np.maximum(variances, smallest).astype(np.float32),
        rest=max(float(dim * average - variances.sum()) / (dim - kept), smallest),
    )


def _principal_axes(x: NDArray[np.float64], kept: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the largest variances (kept,) of centred rows (n, D), and their axes (kept, D)."""
    count, dim = x.shape
    if count < dim:  # much less work than all axes of the covariance, most of which no row reaches
        _, lengths, axes = np.linalg.svd(x, full_matrices=False)
        return lengths[:kept] ** 2 / count, axes[:kept]
    variances, vectors = np.linalg.eigh(x.T @ x / count)  # ascending
    return variances[::-1][:kept], vectors[:, ::-1][:, :kept].T


def fit_ood_threshold(distances: NDArray[np.floating]) -> float:
    """Return the distance (of validation images) from which an image counts as foreign."""
    return float(np.quantile(distances, IN_DISTRIBUTION_SHARE))


class OodScoreLayer(nn.Module):
    """A :class:`Distance` as a torch module: features (N, D) to distances (N,)."""

    mean: Tensor
    inverse_scale: Tensor
    axes: Tensor
    precision: Tensor

    def __init__(self, distance: Distance) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(distance.mean))
        self.register_buffer("inverse_scale", torch.from_numpy(1 / distance.scale))
        self.register_buffer("axes", torch.from_numpy(distance.axes))
        self.register_buffer("precision", torch.from_numpy(1 / distance.variance))
        self.rest = distance.rest

    def forward(self, features: Tensor) -> Tensor:
        x = (features - self.mean) * self.inverse_scale
        z = torch.matmul(x, self.axes.T)
        aside = x - torch.matmul(z, self.axes)
        squares = (z * z * self.precision).sum(1) + (aside * aside).sum(1) / self.rest
        return torch.sqrt(squares / x.shape[1])
