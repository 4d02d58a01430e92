"""An index of the features that are already stored: in the finished cache and in the shards of a stopped run."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.cache.shards import Identities, Shard

IndexRows = NDArray[np.int64]
NOT_STORED = -1


@dataclass(frozen=True)
class _Source:
    """A file with features: the cache or one shard; its rows have the index rows from ``first`` on."""

    first: int
    origin: FeatureCache | Shard
    identities: Identities | None  # of the cache only; those of shards are in ``_in_shards``


class FeatureIndex:
    """An index from paths and contents to stored features.

    Every stored row has a number, its index row: first the rows of the cache, then those of the shards in their order.
    """

    def __init__(self) -> None:
        self._sources: list[_Source] = []
        self._end = 0
        self._in_shards: dict[bytes, int] = {}  # digest -> index row
        self._open: tuple[int, NDArray[Any]] | None = None
        self._paths: list[tuple[int, Sequence[str], Identities]] = []  # each with its first index row

    def add_cache(self, cache: FeatureCache, data_root: str) -> None:
        """Add every row of a finished cache; call this before adding shards.

        Args:
            cache: the cache.
            data_root: of this run's images; rows of a cache with another root are found by content alone.
        """
        columns = cache.columns
        identities = Identities(
            size=columns.size,
            mtime_ns=columns.mtime_ns,
            change_mark=columns.change_mark,
            sha256=np.asarray(columns.sha256, "S64"),
            truncated=columns.truncated,
        )
        if cache.data_root != data_root:
            identities = identities.without_times()
        self._sources.append(_Source(self._end, cache, identities))
        self._paths.append((self._end, columns.path, identities))
        self._end += len(cache)

    def add_shard(self, shard: Shard, identities: Identities, paths: Sequence[str] | None = None) -> int:
        """Add every row of a shard and return the index row of the first.

        Args:
            shard: the file.
            identities: the states of its images.
            paths: their paths, if :meth:`find_paths` is to find them.
        """
        first = self._end
        self._sources.append(_Source(first, shard, None))
        self._end += shard.rows
        for row, sha256 in enumerate(identities.sha256.tolist()):
            self._in_shards.setdefault(bytes.fromhex(sha256.decode()), first + row)
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
            identities.copy_from(rows[here], states, here)
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
        """Return the features (n, D) or (n, V, D) of n index rows, opening each file once."""
        source_of = np.array([self._source_of(index_row) for index_row in index_rows.tolist()], np.intp)
        rows: NDArray[Any] | None = None
        for number in dict.fromkeys(source_of.tolist()):
            chosen = source_of == number
            found = self._features(number)[index_rows[chosen] - self._sources[number].first]
            if rows is None:
                rows = np.empty((len(index_rows), *found.shape[1:]), found.dtype)
            rows[chosen] = found
        if rows is None:
            raise ValueError("no index rows")
        return rows

    def _source_of(self, index_row: int) -> int:
        return bisect_right(self._sources, index_row, key=lambda source: source.first) - 1

    @cached_property
    def _cache_index(self) -> tuple[NDArray[np.bytes_], NDArray[np.intp]]:
        """Contents of the cache, sorted, and their index rows; computed on first use, as many runs do not need them."""
        identities = self._sources[0].identities if self._sources else None
        contents = identities.sha256 if identities is not None else np.zeros(0, "S64")
        order = np.argsort(contents, kind="stable")
        return contents[order], order

    def _find_in_cache(self, sha256: bytes) -> int:
        contents, order = self._cache_index
        at = int(np.searchsorted(contents, sha256))
        return int(order[at]) if at < len(contents) and contents[at] == sha256 else NOT_STORED

    def _features(self, number: int) -> NDArray[Any]:
        origin = self._sources[number].origin
        if isinstance(origin, FeatureCache):
            return origin.features
        if self._open is None or self._open[0] != number:
            self._open = (number, origin.features())
        return self._open[1]
