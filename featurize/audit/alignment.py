"""Image registration of small grey images: finds copies of an image that were cropped or rotated."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Pictures = NDArray[np.float32]
"""(n, side, side)."""

# Root mean square of fine detail, in grey levels, below which an image is too uniform to compare.
PLAIN = 0.5
# Limits of a plausible crop or rotation: the scaling, and the smallest share of points that overlap.
_MOST_STRETCH = 1.35
_LEAST_OVERLAP = 0.6
# Ignored at the edges, as shares of the side: in the first image, which a crop does not fully contain, and in the
# second, where a rotation leaves black wedges.
_MARGIN = 0.12
_EDGE = 0.08
_STEADY = 1e-3  # regularisation, as a share of the mean diagonal: for images with detail in one direction only


class _Level(NamedTuple):
    """One level of the fit: side in pixels, sigmas of the two blurs whose difference is compared, and steps."""

    side: int
    fine: float
    coarse: float
    steps: int


# The first level finds shifts of up to ten percent of the side, the second refines them.
_ROUGH = _Level(32, 1.0, 5.0, 16)
_EXACT = _Level(64, 0.7, 2.5, 6)


Placement = NDArray[np.float32]
"""Affine maps from the first image to the second, (n, 2, 3): linear, then shift; in units of the side."""


def aligned_correlation(
    first: NDArray[np.uint8], second: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Correlate the fine detail of small grey images after registering the second to the first.

    Args:
        first: uint8 (n, 64, 64).
        second: uint8 (n, 64, 64).

    Returns:
        Correlation where the two overlap, float32 (n,), 0 if the map is no crop or rotation of up to about ten percent
        or ten degrees, or an image is too uniform; whether the second was mirrored, bool (n,).

    Source:
        Baker and Matthews, "Lucas-Kanade 20 Years On", 2004: the inverse compositional algorithm, affine, on normalised
        images.
    """
    one, other = first.astype(np.float32), second.astype(np.float32)
    unmoved = np.tile(np.eye(2, 3, dtype=np.float32), (len(one), 1, 1))
    straight, fit = _place(one, other, _ROUGH, unmoved)
    flipped, flipped_fit = _place(one, other[:, :, ::-1], _ROUGH, unmoved)
    mirrored = flipped_fit > fit
    other[mirrored] = other[mirrored, :, ::-1]
    placement, correlation = _place(one, other, _EXACT, np.where(mirrored[:, None, None], flipped, straight))
    stretch = np.linalg.svd(placement[:, :, :2], compute_uv=False)
    correlation[(stretch.max(axis=1) >= _MOST_STRETCH) | (stretch.min(axis=1) <= 1 / _MOST_STRETCH)] = 0
    return correlation, mirrored


def equalised(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Equalise histograms, so that gamma, brightness and contrast no longer matter.

    Args:
        pictures: uint8 (n, side, side).

    Returns:
        uint8 (n, side, side): the rank of each pixel in its image.
    """
    from scipy.stats import rankdata

    flat = pictures.reshape(len(pictures), -1)
    ranks = rankdata(flat, axis=1) / max(1, flat.shape[1])
    levels: NDArray[np.uint8] = np.round(255 * ranks).astype(np.uint8).reshape(pictures.shape)
    return levels


def _place(
    first: Pictures, second: Pictures, level: _Level, placement: Placement
) -> tuple[Placement, NDArray[np.float32]]:
    """Refine placements step by step; return them and their correlations (n,)."""
    one, other = _band(first, level), _band(second, level)
    x, y = _points(level.side)
    length = np.linalg.norm(_inner(one), axis=1)[:, None, None]
    slope_y, slope_x = np.gradient(one / np.maximum(length, 1e-6), axis=(1, 2))
    down, right = _inner(slope_y) * level.side, _inner(slope_x) * level.side
    # The derivative of the image with respect to the six parameters, and the least-squares solution for a difference.
    changes = np.stack([right * x, right * y, down * x, down * y, right, down], axis=1)
    normal = changes @ changes.transpose(0, 2, 1)
    steady = _STEADY * np.trace(normal, axis1=1, axis2=2) / 6 + 1e-6
    normal += steady[:, None, None] * np.eye(6, dtype=np.float32)
    answers = np.linalg.solve(normal, changes)
    for _ in range(level.steps):
        moved, seen = _moved(other, placement)
        step = (answers @ (_unit(moved, seen) - _unit(_inner(one), seen))[:, :, None])[:, :, 0]
        linear = placement[:, :, :2] @ np.linalg.inv(np.eye(2, dtype=np.float32) + step[:, :4].reshape(-1, 2, 2))
        shift = placement[:, :, 2:] - linear @ step[:, 4:, None]
        placement = np.concatenate([linear, shift], axis=2)
    moved, seen = _moved(other, placement)
    correlation = np.einsum("np,np->n", _unit(moved, seen), _unit(_inner(one), seen))
    plain = np.minimum(one.std(axis=(1, 2)), other.std(axis=(1, 2))) < PLAIN
    correlation[plain | (seen.mean(axis=1) < _LEAST_OVERLAP)] = 0
    return placement, correlation


def _band(pictures: Pictures, level: _Level) -> Pictures:
    """Return the difference of two blurs, at the side of the level: what all chests have in common is coarser."""
    from scipy.ndimage import gaussian_filter

    parts = pictures.shape[1] // level.side
    small = pictures.reshape(len(pictures), level.side, parts, level.side, parts).mean(axis=(2, 4))
    fine, coarse = (gaussian_filter(small, (0, sigma, sigma)) for sigma in (level.fine, level.coarse))
    band: Pictures = fine - coarse
    return band


def _inner(pictures: Pictures) -> NDArray[np.float32]:
    """Return the pixels (n, p) that are compared."""
    cut = round(_MARGIN * pictures.shape[1])
    points = (pictures.shape[1] - 2 * cut) ** 2
    return np.ascontiguousarray(pictures[:, cut:-cut, cut:-cut]).reshape(len(pictures), points)


def _points(side: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the coordinates of those pixels: x and y (p,), from the middle, in units of the side."""
    along = ((np.arange(side, dtype=np.float32) - (side - 1) / 2) / side).astype(np.float32)
    y, x = np.meshgrid(along, along, indexing="ij")
    return _inner(x[None])[0], _inner(y[None])[0]


def _moved(pictures: Pictures, placement: Placement) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Sample images, bilinear, at the mapped points; return the values and which points are inside, (n, p)."""
    side = pictures.shape[1]
    x, y = _points(side)
    low, high = _EDGE * side, side - 1.001 - _EDGE * side
    maps = [placement[:, axis, :, None] for axis in (0, 1)]
    at = [(to[:, 0] * x + to[:, 1] * y + to[:, 2]) * side + (side - 1) / 2 for to in maps]
    inside = np.logical_and.reduce([(part >= low) & (part <= high) for part in at]).astype(np.float32)
    at = [np.clip(part, low, high) for part in at]
    column, row = (np.floor(part) for part in at)
    right, down = at[0] - column, at[1] - row
    flat = pictures.ravel()
    first = np.arange(len(pictures), dtype=np.int32)[:, None] * side * side
    corner = first + row.astype(np.int32) * side + column.astype(np.int32)
    above = flat[corner] * (1 - right) + flat[corner + 1] * right
    below = flat[corner + side] * (1 - right) + flat[corner + side + 1] * right
    return above * (1 - down) + below * down, inside


def _unit(values: NDArray[np.float32], seen: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return values (n, p) minus their mean, divided by their norm, and 0 where ``seen`` is 0."""
    mean = (values * seen).sum(axis=1, keepdims=True) / np.maximum(seen.sum(axis=1, keepdims=True), 1)
    centred = (values - mean) * seen
    unit: NDArray[np.float32] = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6)
    return unit
