"""Nearest neighbours in feature space, and principal components; memory stays small, as features are read in blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.audit.thresholds import THRESHOLDS
from xfeat.featurize.cache.reader import FeatureCache

# Rows that are in memory with all their features: 20,000 × 1280 float32 are 100 MB.
_BLOCK = 20_000
_QUERY = 4_096
_GATHER = 512
# Components for the search in large data sets: on the X-rays they find copies as often as all features do.
_SEARCH_DIM = 128
# Principal components that the linear models are given; measured in docs/audit.md.
SHORT_DIM = 64


def clean_view(cache: FeatureCache) -> NDArray[Any]:
    """Return features (N, D): those of the unchanged image if there are several views."""
    return cache.features[:, 0] if cache.features.ndim == 3 else cache.features


def nearest_neighbours(
    features: NDArray[Any], rows: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Find the nearest neighbours of each of ``rows`` among the others by cosine.

    The search is exact for up to 20,000 rows. For more, neighbours are found by 128 principal components (in a tenth of
    the time); their cosines are those of the features.

    Args:
        features: (N, D), may be memory-mapped.
        rows: int64 (n,), the rows to search, ascending.
        count: neighbours per row; fewer if there are fewer rows.

    Returns:
        Neighbours, int64 (n, k), as positions in ``rows``; cosines, float32 (n, k), largest first.
    """
    wanted = min(count, len(rows) - 1)
    if wanted < 1:
        return np.zeros((len(rows), 0), np.int64), np.zeros((len(rows), 0), np.float32)
    if len(rows) <= _BLOCK:
        return _search(features, rows, wanted)
    found, _ = _search(short_features(features, dim=_SEARCH_DIM), rows, wanted)
    cosines = np.empty(found.shape, np.float32)
    for own in _blocks(len(rows), _GATHER):
        one = _unit_rows(features, rows[own])
        others = _unit_rows(features, rows[found[own]].ravel()).reshape(len(one), wanted, -1)
        cosines[own] = np.einsum("nd,nkd->nk", one, others)
    order = np.argsort(-cosines, axis=1, kind="stable")
    return np.take_along_axis(found, order, axis=1), np.take_along_axis(cosines, order, axis=1)


def _search(
    features: NDArray[Any], rows: NDArray[np.int64], wanted: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    from sklearn.neighbors import NearestNeighbors

    # For unit vectors, squared distance = 2 - 2 cosine, and scikit-learn's search by distance is much faster.
    search = NearestNeighbors(n_neighbors=wanted, algorithm="brute").fit(_unit_rows(features, rows))
    distances, places = search.kneighbors()  # without arguments no row is its own neighbour
    return places, (1 - distances**2 / 2).astype(np.float32)


def short_features(features: NDArray[Any], *, dim: int = SHORT_DIM) -> NDArray[np.float32]:
    """Return the features' principal components, float32 (N, at most ``dim``), fitted on at most 20,000 rows."""
    from sklearn.decomposition import PCA
    from threadpoolctl import threadpool_limits

    count = len(features)
    seen = np.asarray(features[sample_rows(np.arange(count), _BLOCK)], np.float32)
    # For a few thousand rows one thread is faster: on busy cores several wait for each other.
    with threadpool_limits(1 if count <= _QUERY else None), np.errstate(invalid="ignore"):
        reduce = PCA(min(dim, *seen.shape), svd_solver="randomized", random_state=THRESHOLDS.seed).fit(seen)
    parts = [reduce.transform(np.asarray(features[rows], np.float32)) for rows in _blocks(count, _QUERY)]
    return np.vstack(parts).astype(np.float32)


def sample_rows(candidates: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return at most ``most`` of ``candidates``, drawn at random, ascending."""
    if len(candidates) <= most:
        return candidates
    return np.sort(np.random.default_rng(THRESHOLDS.seed).choice(candidates, most, replace=False))


def _unit_rows(features: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    block = np.asarray(features[rows], np.float32)
    norms = np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1e-12)
    unit: NDArray[np.float32] = (block / norms).astype(np.float32)
    return unit


def _blocks(count: int, rows: int) -> Iterator[slice]:
    return (slice(first, min(first + rows, count)) for first in range(0, count, rows))
