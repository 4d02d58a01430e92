"""The features of a cache in its file. Read, and not mapped: a mapped file that is cut short kills the process."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.cache.layout import REBUILD, Place
from xfeat.featurize.errors import CacheError
from xfeat.featurize.system.filesystem import MAPPING, is_missing

# Rows at most this far apart are read in one call, including the rows between them; and at most so many per call.
_NEAR, _MOST_AT_ONCE = 4, 512


class FeatureFile:
    """All features of a cache in its opened file, which stays open as long as this object.

    Args:
        path: of the file, for messages.
        file: the file, opened; another one may be at its path by now.
        place: of the features.
    """

    def __init__(self, path: Path, file: BinaryIO, place: Place) -> None:
        self.path, self._descriptor = path, os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)
        self._opened = os.fstat(self._descriptor)
        self._shape, self._dtype, self._offset = tuple(place["shape"]), np.dtype(place["dtype"]), place["offset"]
        self._seeking = threading.Lock()

    def read_array(self, place: Place) -> NDArray[Any]:
        """Return another array of the file.

        Raises:
            CacheError: if the file cannot be read, or was cut short.
        """
        found = np.empty(place["shape"], place["dtype"])
        if found.size:
            self._fill(found, place["offset"])
        return found

    def is_as_opened(self) -> bool:
        """Tell whether nobody has written into the file since it was opened."""
        now = os.fstat(self._descriptor)
        return (now.st_size, now.st_mtime_ns) == (self._opened.st_size, self._opened.st_mtime_ns)

    def mapped(self) -> NDArray[Any]:
        """Return all features, mapped and read-only; in memory where a file system cannot map files."""
        try:
            with os.fdopen(os.dup(self._descriptor), "rb") as file:
                return np.memmap(file, dtype=self._dtype, mode="r", offset=self._offset, shape=self._shape)
        except OSError as error:
            if not is_missing(MAPPING, error, self.path):
                raise
            return self.read(np.arange(self._shape[0]), None)

    def read(self, rows: NDArray[np.int64], views: NDArray[np.int64] | int | None) -> NDArray[Any]:
        """Return rows (n, D), or (n, V, D) if ``views`` is ``None`` and there are several.

        Raises:
            CacheError: if the file cannot be read, or was cut short.
        """
        numbers, shape = rows, self._shape[1:]
        if len(shape) == 2 and views is not None:
            numbers, shape = rows * shape[0] + views, shape[1:]
        found = np.empty((len(rows), *shape), self._dtype)
        item_bytes = int(np.prod(shape)) * self._dtype.itemsize
        for part in _runs(numbers):
            wanted = numbers[part]
            first, count = int(wanted[0]), int(wanted[-1] - wanted[0]) + 1
            position = self._offset + first * item_bytes
            if count == len(wanted):
                self._fill(found[part], position)
            else:
                whole = np.empty((count, *shape), self._dtype)
                self._fill(whole, position)
                found[part] = whole[wanted - first]
        return found

    def _fill(self, target: NDArray[Any], position: int) -> None:
        """Read ``target`` from a position in the file on."""
        wanted: memoryview = target.reshape(-1).view(np.uint8).data
        end = position + target.nbytes
        while wanted:
            try:
                count = self._read_into(wanted, position)
            except OSError as error:
                raise CacheError("cannot be read", path=self.path, found=str(error), fix=REBUILD) from error
            if not count:
                raise CacheError(
                    "the file was cut short while it was read",
                    path=self.path,
                    expected=f"{end} bytes or more",
                    found=f"{os.fstat(self._descriptor).st_size} bytes",
                    fix=REBUILD,
                )
            wanted, position = wanted[count:], position + count

    def _read_into(self, target: memoryview, position: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._descriptor, [target], position)
        with self._seeking:  # Windows
            os.lseek(self._descriptor, position, os.SEEK_SET)
            data = os.read(self._descriptor, len(target))
        target[: len(data)] = data
        return len(data)


def _runs(numbers: NDArray[np.int64]) -> Iterator[slice]:
    """Divide row numbers into runs that are read in one call; ascending numbers give the longest runs."""
    steps = np.diff(numbers)
    far = np.flatnonzero((steps < 1) | (steps > _NEAR)) + 1
    edges = np.unique(np.concatenate([far, np.arange(0, len(numbers), _MOST_AT_ONCE), [len(numbers)]]))
    return (slice(start, end) for start, end in pairwise(edges.tolist()))
