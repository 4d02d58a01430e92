"""Rows of a cache, copied from its file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.errors import CacheError

# Rows that are read at a time where the batch size of training does not apply.
ROWS_AT_ONCE = 4096


def read_rows(
    cache: FeatureCache, rows: NDArray[np.int64], *, views: NDArray[np.int64] | int | None = None
) -> NDArray[Any]:
    """Copy rows of a cache in its own dtype, with no more than these in memory.

    Args:
        cache: its features are (N, D) or (N, V, D).
        rows: n row numbers.
        views: which view of each row, if the cache has views; ``None`` for all of them.

    Returns:
        (n, D), or (n, V, D) for all views.

    Raises:
        CacheError: if the file cannot be read, or was cut short.
    """
    features = cache.features
    one_view = features.ndim == 2 or views is not None
    found = np.empty((len(rows), *(features.shape[-1:] if one_view else features.shape[1:])), features.dtype)
    for first in range(0, len(rows), ROWS_AT_ONCE):
        part = slice(first, first + ROWS_AT_ONCE)
        which = views[part] if isinstance(views, np.ndarray) else views
        found[part] = cache.file.read(rows[part], which)[..., : features.shape[-1]]
    return found


@contextmanager
def unchanged(cache: FeatureCache) -> Iterator[None]:
    """Check at the end that the file was not overwritten since it was opened: the rows read would be of two caches.

    A new file at the same path does no harm: the old one stays open.

    Raises:
        CacheError: if the rows of the file have changed.
    """
    yield
    if cache.file.is_as_opened():
        return
    try:
        cache.verify()
    except CacheError as error:
        raise CacheError(
            "the file was overwritten with another cache while it was read",
            path=cache.path,
            expected=f"content {cache.content_sha256[:16]}…",
            found=error.what,
            fix="run the same command again",
        ) from error
