"""An index of the features that are already stored: in the finished cache and in the shards of a stopped run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.cache.shards import IDENTITY, FileIdentity, Identities, Shard
from xfeat.featurize.urls import real_root

IndexRows = NDArray[np.int64]
NOT_STORED = -1


class FeatureIndex:
    """An index from paths and contents to stored features.

    Every stored row has a number, its index row: first the rows of the cache, then those of the shards in their order.
    """

    def __init__(self) -> None:
        self._sources: list[FeatureCache | Shard] = []
        self._firsts: list[int] = []  # the first index row of each source
        self._end = 0
        self._in_cache = np.zeros(0, "S64")  # contents of the cache
        self._in_shards: dict[bytes, int] = {}  # digest -> index row
        self._open: tuple[int, NDArray[Any]] | None = None
        self._paths: list[tuple[int, Sequence[str], Identities]] = []  # each with its first index row

    def add_cache(self, cache: FeatureCache, data_root: str) -> None:
        """Add every row of a finished cache; call this before adding shards.

        Args:
            cache: the cache.
            data_root: of this run's images, without links; rows of a cache that had another root when it was written
                are found by content alone.
        """
        identities = np.zeros(len(cache), IDENTITY)
        for name in FileIdentity._fields:
            identities[name] = getattr(cache.columns, name)
        if real_root(cache.stored_root.original) != data_root:
            identities["mtime_ns"] = 0
        self._in_cache = identities["sha256"]
        self._paths.append((self._add(cache, len(cache)), cache.columns.path, identities))

    def add_shard(self, shard: Shard, identities: Identities, paths: Sequence[str] | None = None) -> int:
        """Add every row of a shard and return the index row of the first.

        Args:
            shard: the file.
            identities: the states of its images.
            paths: their paths, if :meth:`find_paths` is to find them.
        """
        first = self._add(shard, shard.rows)
        for index_row, sha256 in enumerate(identities["sha256"].tolist(), start=first):
            self._in_shards.setdefault(bytes.fromhex(sha256.decode()), index_row)
        if paths is not None:
            self._paths.append((first, paths, identities))
        return first

    def find_paths(self, paths: Sequence[str], identities: Identities) -> IndexRows:
        """Look up many files by path, at the start of a run.

        Args:
            paths: N paths.
            identities: N states; those of known paths are set to the states that their features were computed from.

        Returns:
            Index row of each path's features, or ``NOT_STORED``. Rows that were added later win.
        """
        index_rows = np.full(len(paths), NOT_STORED, np.int64)
        row_of = {path: row for row, path in enumerate(paths)}
        for first, known, states in self._paths:
            rows = np.array([row_of.get(path, NOT_STORED) for path in known], np.intp)
            here = np.flatnonzero(rows != NOT_STORED)
            index_rows[rows[here]] = first + here
            identities[rows[here]] = states[here]
        self._paths.clear()
        return index_rows

    def find_content(self, sha256: str) -> int:
        """Return the index row of the features of a file with this content, or ``NOT_STORED``."""
        index_row = self._in_shards.get(bytes.fromhex(sha256))
        return self._find_in_cache(sha256.encode()) if index_row is None else index_row

    def contents(self) -> NDArray[np.bytes_]:
        """Return the SHA-256 of every content with stored features, sorted, 64 hexadecimal digits each."""
        in_shards = np.array([digest.hex() for digest in self._in_shards], "S64")
        return np.union1d(self._cache_index[0], in_shards)

    def gather(self, index_rows: IndexRows) -> NDArray[Any]:
        """Return the features (n, D) or (n, V, D) of n index rows, at least one, opening each file once."""
        source_of = np.searchsorted(self._firsts, index_rows, side="right") - 1
        found = [
            self._read(number, index_rows[source_of == number] - self._firsts[number])
            for number in np.unique(source_of).tolist()
        ]
        place = np.argsort(np.argsort(source_of, kind="stable"), kind="stable")  # of each index row in what was found
        rows: NDArray[Any] = np.concatenate(found)[place]
        return rows

    def _add(self, source: FeatureCache | Shard, rows: int) -> int:
        """Add a file with features; return its first index row."""
        first = self._end
        self._sources.append(source)
        self._firsts.append(first)
        self._end += rows
        return first

    @cached_property
    def _cache_index(self) -> tuple[NDArray[np.bytes_], NDArray[np.intp]]:
        """Contents of the cache, sorted, and their index rows; computed on first use, as many runs do not need them."""
        order = np.argsort(self._in_cache, kind="stable")
        return self._in_cache[order], order

    def _find_in_cache(self, sha256: bytes) -> int:
        contents, order = self._cache_index
        at = int(np.searchsorted(contents, sha256))
        return int(order[at]) if at < len(contents) and contents[at] == sha256 else NOT_STORED

    def _read(self, number: int, rows: IndexRows) -> NDArray[Any]:
        source = self._sources[number]
        if isinstance(source, FeatureCache):
            return source.file.read(rows, None)
        if self._open is None or self._open[0] != number:
            self._open = (number, source.features())
        return self._open[1][rows]
