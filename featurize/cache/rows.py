"""Rows of a cache, copied from its file. Read, and not mapped: a mapped file that is cut short kills the process."""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.cache.reader import CacheFileState, FeatureCache
from xfeat.featurize.errors import CacheError

# Rows that are read at a time where the batch size of training does not apply.
ROWS_AT_ONCE = 4096
# Rows at most this far apart are read in one call, including the rows between them; and at most so many per call.
_NEAR, _MOST_AT_ONCE = 4, 512


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
        CacheError: if a value is not finite, or the file was cut short.
    """
    features = cache.features
    one_view = features.ndim == 2 or views is not None
    found = np.empty((len(rows), *(features.shape[-1:] if one_view else features.shape[1:])), features.dtype)
    for first in range(0, len(rows), ROWS_AT_ONCE):
        part = slice(first, first + ROWS_AT_ONCE)
        which = views[part] if isinstance(views, np.ndarray) else views
        found[part] = _copied(cache, rows[part], which)
        _check_finite(cache, rows[part], found[part])
    return found


def _copied(cache: FeatureCache, rows: NDArray[np.int64], views: NDArray[np.int64] | int | None) -> NDArray[Any]:
    features = cache.features
    file = _file_of(cache)
    if file is not None:
        return file.read(rows, views)[..., : features.shape[-1]]
    copied: NDArray[Any] = features[rows] if features.ndim == 2 or views is None else features[rows, views]
    _forget_pages(features)
    return copied


class _File:
    """The features of a cache, read from the file that they are mapped from.

    Args:
        handle: the file, opened; closed with the mapping.
        mapped: all features of the file.
        path: for messages.
    """

    def __init__(self, handle: int, mapped: np.memmap[Any, Any], path: Path) -> None:
        self._handle, self._path = handle, path
        self._shape, self._dtype, self._offset = mapped.shape, mapped.dtype, int(mapped.offset)

    def read(self, rows: NDArray[np.int64], views: NDArray[np.int64] | int | None) -> NDArray[Any]:
        """Return rows (n, D), or (n, V, D) if ``views`` is ``None`` and there are several."""
        numbers, shape = rows, self._shape[1:]
        if len(shape) == 2 and views is not None:
            numbers, shape = rows * shape[0] + views, shape[1:]
        found = np.empty((len(rows), *shape), self._dtype)
        for part in _runs(numbers):
            wanted = numbers[part]
            first, count = int(wanted[0]), int(wanted[-1] - wanted[0]) + 1
            if count == len(wanted):
                self._fill(found[part], first)
            else:
                whole = np.empty((count, *shape), self._dtype)
                self._fill(whole, first)
                found[part] = whole[wanted - first]
        return found

    def _fill(self, target: NDArray[Any], first: int) -> None:
        """Read ``target``, of which each item is a row of the file, from the row ``first`` on."""
        wanted: memoryview = target.reshape(-1).view(np.uint8).data
        position = self._offset + first * target[0].nbytes
        while wanted:
            try:
                count = os.preadv(self._handle, [wanted], position)
            except OSError as error:
                raise CacheError("cannot be read", path=self._path, found=str(error), fix=_REBUILD) from error
            if not count:
                raise CacheError(
                    "the file was cut short while it was read",
                    path=self._path,
                    expected=f"{self._offset + int(np.prod(self._shape)) * self._dtype.itemsize} bytes or more",
                    found=f"{os.fstat(self._handle).st_size} bytes",
                    fix=_REBUILD,
                )
            wanted, position = wanted[count:], position + count


_REBUILD = "run xfeat featurize again, or restore a copy"


def _runs(numbers: NDArray[np.int64]) -> Iterator[slice]:
    """Divide row numbers into runs that are read in one call; ascending numbers give the longest runs."""
    steps = np.diff(numbers)
    far = np.flatnonzero((steps < 1) | (steps > _NEAR)) + 1
    edges = np.unique(np.concatenate([far, np.arange(0, len(numbers), _MOST_AT_ONCE), [len(numbers)]]))
    return (slice(start, end) for start, end in pairwise(edges.tolist()))


_files: weakref.WeakKeyDictionary[mmap.mmap, _File | None] = weakref.WeakKeyDictionary()
_opening = Lock()


def _file_of(cache: FeatureCache) -> _File | None:
    """Return the file that a cache is mapped from; ``None`` if it is not mapped, or its path is now another file.

    A replaced file has no path any more, so nobody can cut it short. Windows has no ``preadv``, and nobody can cut a
    mapped file short there.
    """
    mapped = _mapped(cache.features)
    if mapped is None or not hasattr(os, "preadv"):
        return None
    mapping = cast(mmap.mmap, mapped.base)
    with _opening:
        if mapping not in _files:
            _files[mapping] = _opened(cache, mapped, mapping)
        return _files[mapping]


def _opened(cache: FeatureCache, mapped: np.memmap[Any, Any], mapping: mmap.mmap) -> _File | None:
    try:
        file = cache.path.open("rb", buffering=0)
    except OSError:
        return None
    if cache.state is None or os.fstat(file.fileno()).st_ino != cache.state.inode:
        file.close()
        return None
    weakref.finalize(mapping, file.close)
    return _File(file.fileno(), mapped, cache.path)


def _mapped(features: NDArray[Any]) -> np.memmap[Any, Any] | None:
    """Return the mapped array that features are all or the first columns of."""
    found: Any = features
    while isinstance(found, np.ndarray) and not isinstance(found.base, mmap.mmap):
        found = found.base
    return found if isinstance(found, np.memmap) else None


def _forget_pages(features: NDArray[Any]) -> None:
    """Release the pages that were read: pages of a mapped file count as this process's memory until then."""
    mapped = _mapped(features)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        cast(Any, mapped.base).madvise(mmap.MADV_DONTNEED)


def _check_finite(cache: FeatureCache, rows: NDArray[np.int64], values: NDArray[Any]) -> None:
    if np.isfinite(values).all():
        return
    bad = rows[~np.isfinite(values).reshape(len(rows), -1).all(axis=1)]
    raise CacheError(
        f"rows with values that are not finite ({len(bad)}): {', '.join(cache.columns.path[row] for row in bad[:3])}",
        path=cache.path,
        fix="run xfeat featurize --force, and xfeat verify afterwards",
    )


@contextmanager
def unchanged(cache: FeatureCache) -> Iterator[None]:
    """Check at the end that the file was not overwritten since it was opened: the rows read would be of two caches.

    A new file at the same path does no harm: the old one stays mapped.

    Raises:
        CacheError: if the content of the file has changed.
    """
    yield
    before, after = cache.state, CacheFileState.of(cache.path)
    if before is None or after is None or after == before or after.inode != before.inode:
        return
    found = FeatureCache.open(cache.path)
    if found.content_sha256 != cache.content_sha256:
        raise CacheError(
            "the file was overwritten with another cache while it was read",
            path=cache.path,
            expected=f"content {cache.content_sha256[:16]}…",
            found=f"content {found.content_sha256[:16]}…",
            fix="run the same command again",
        )
    found.verify()
