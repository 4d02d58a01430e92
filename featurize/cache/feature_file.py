"""The features of a cache, read from the file that they are mapped from."""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.errors import CacheError

# Rows at most this far apart are read in one call, including the rows between them; and at most so many per call.
_NEAR, _MOST_AT_ONCE = 4, 512
_REBUILD = "run xfeat featurize again, or restore a copy"


class FeatureFile:
    """All features of a cache in its opened file, which stays open as long as this object.

    Args:
        path: the file.
        mapped: its features, mapped.
    """

    def __init__(self, path: Path, mapped: np.memmap[Any, Any]) -> None:
        self._path, self._file = path, path.open("rb", buffering=0)
        weakref.finalize(self, self._file.close)
        self._shape, self._dtype, self._offset = mapped.shape, mapped.dtype, int(mapped.offset)

    @classmethod
    def open(cls, path: Path, features: NDArray[Any], inode: int) -> FeatureFile | None:
        """Open the file of these features; ``None`` if they are not mapped, or the path is now another file.

        A replaced file has no path any more, so nobody can cut it short. Windows has no ``preadv``, and nobody can cut
        a mapped file short there.
        """
        mapped = mapped_array(features)
        if mapped is None or not hasattr(os, "preadv"):
            return None
        try:
            file = cls(path, mapped)
        except OSError:
            return None
        return file if os.fstat(file._file.fileno()).st_ino == inode else None

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
                count = os.preadv(self._file.fileno(), [wanted], position)
            except OSError as error:
                raise CacheError("cannot be read", path=self._path, found=str(error), fix=_REBUILD) from error
            if not count:
                raise CacheError(
                    "the file was cut short while it was read",
                    path=self._path,
                    expected=f"{self._offset + int(np.prod(self._shape)) * self._dtype.itemsize} bytes or more",
                    found=f"{os.fstat(self._file.fileno()).st_size} bytes",
                    fix=_REBUILD,
                )
            wanted, position = wanted[count:], position + count


def _runs(numbers: NDArray[np.int64]) -> Iterator[slice]:
    """Divide row numbers into runs that are read in one call; ascending numbers give the longest runs."""
    steps = np.diff(numbers)
    far = np.flatnonzero((steps < 1) | (steps > _NEAR)) + 1
    edges = np.unique(np.concatenate([far, np.arange(0, len(numbers), _MOST_AT_ONCE), [len(numbers)]]))
    return (slice(start, end) for start, end in pairwise(edges.tolist()))


def mapped_array(features: NDArray[Any]) -> np.memmap[Any, Any] | None:
    """Return the mapped array that features are all or the first columns of."""
    found: Any = features
    while isinstance(found, np.ndarray) and not isinstance(found.base, mmap.mmap):
        found = found.base
    return found if isinstance(found, np.memmap) else None
