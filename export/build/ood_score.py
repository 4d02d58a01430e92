"""The out-of-distribution score of an image: how far its features are from those of the nearest training images."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[np.float64]

# Share of the validation images that count as in distribution: the threshold is this quantile of their scores.
IN_DISTRIBUTION_SHARE = 0.95
# With all axes and rows the score would be as large as the backbone; so it has 1.2 MB for features of 1280.
MAX_AXES = 128
MAX_NEIGHBOURS = 1000
# Enough to estimate axes of some thousand dimensions, few enough for memory.
MAX_ROWS = 20_000
# The nearest rows may be odd ones themselves, so the distance is that of the K-th; a row's radius is measured likewise.
_K, _K_OF_ROWS = 5, 10
# Rows whose neighbours are almost copies get this share of the median radius; the other is of rows that are all equal.
_FLOOR, _SMALLEST = 0.1, 1e-3
# Lengths count for a quarter of what directions do: some encoders return a blank image near 0, in a usual direction.
_LENGTH = 0.25
# Below this share of the median length, features have no direction.
_SHORTEST = 1e-3


class OodScore(nn.Module):
    """Distances of features to rows of the training features, in direction and length, in units of each row's radius.

    Args:
        shortest: features are divided by their length, at least by this one.
        weight: of the logarithm of the length, which follows the features as one more.
        mean: (D + 1,), of training features of length 1 and their weighted logarithms.
        axes: (K, D + 1), orthonormal rows: principal axes around the mean.
        rows: (R, K), training features along the axes.
        radius: (R,), distance of each row to the other rows, more than 0.
    """

    mean: Tensor
    axes: Tensor
    columns: Tensor
    squares: Tensor
    precision: Tensor

    def __init__(self, *, shortest: float, weight: float, mean: Array, axes: Array, rows: Array, radius: Array) -> None:
        super().__init__()
        self.shortest, self.weight, self.k = shortest, weight, min(_K, len(rows))
        squares = np.square(rows).sum(1)
        arrays = {"mean": mean, "axes": axes.T, "columns": -2 * rows.T, "squares": squares, "precision": radius**-2.0}
        for name, array in arrays.items():
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(array, np.float32)))
        self.eval()

    def forward(self, features: Tensor) -> Tensor:
        """Return ood scores (N,) of features (N, D)."""
        length = torch.linalg.vector_norm(features, dim=1, keepdim=True).clamp(min=self.shortest)
        x = torch.cat([features / length, self.weight * torch.log(length)], dim=1) - self.mean
        # |x - row|^2: what lies outside the axes counts as well, since only the row is cut to them.
        products = torch.matmul(torch.matmul(x, self.axes), self.columns)
        distances = ((x * x).sum(1, keepdim=True) + products + self.squares) * self.precision
        nearest = torch.topk(distances, self.k, dim=1, largest=False).values[:, self.k - 1]
        return torch.sqrt(torch.relu(nearest))


def fit_ood_score(features: NDArray[np.floating]) -> OodScore:
    """Fit the ood score to the features (n, D) of two or more training images, whose own scores are about 1.

    Source: the distance to the k-th neighbour among features of length 1 is from Sun et al. 2022 (arXiv:2204.06507); a
    radius per neighbour is the local scaling of Zelnik-Manor and Perona 2004 (Self-Tuning Spectral Clustering).
    """
    rows = np.asarray(features[:: -(-len(features) // MAX_ROWS)], np.float64)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    shortest = _SHORTEST * float(np.median(length)) or _SMALLEST
    length = np.maximum(length, shortest)
    rows, logarithm = rows / length, np.log(length)
    weight = _LENGTH * float(np.linalg.norm(rows.std(0))) / max(float(logarithm.std()), 0.01)
    rows = np.concatenate([rows, weight * logarithm], axis=1)
    mean = rows.mean(0)
    x = rows - mean
    axes = _principal_axes(x, min(MAX_AXES, *x.shape))
    x = x[:: -(-len(x) // MAX_NEIGHBOURS)]
    z = x @ axes.T
    radius = _radius(np.square(x).sum(1)[:, None] - 2 * z @ z.T + np.square(z).sum(1))
    return OodScore(shortest=shortest, weight=weight, mean=mean, axes=axes, rows=z, radius=radius)


def _radius(squares: Array) -> Array:
    """Return the distance of each row to its tenth neighbour, from squared distances (n, n)."""
    np.fill_diagonal(squares, -1.0)  # a row is its own first neighbour, even if another is a copy of it
    distances = np.sqrt(np.maximum(np.sort(squares, axis=1)[:, min(_K_OF_ROWS, len(squares) - 1)], 0.0))
    return np.maximum(distances, max(_FLOOR * float(np.median(distances)), _SMALLEST))


def _principal_axes(x: Array, k: int) -> Array:
    """Return the axes (K, D) of largest variance of centred rows (n, D)."""
    count, dim = x.shape
    if count < dim:  # much less work than all axes of the covariance, most of which have variance 0
        axes: Array = np.linalg.svd(x, full_matrices=False)[2]
        return axes[:k]
    vectors: Array = np.linalg.eigh(x.T @ x / count)[1]  # ascending
    return vectors[:, ::-1][:, :k].T


def fit_ood_threshold(scores: NDArray[np.floating]) -> float:
    """Return the score above which an image counts as out of distribution, from those of validation images."""
    return float(np.quantile(scores, IN_DISTRIBUTION_SHARE))
