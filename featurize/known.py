"""Features that need no computing: those of the finished cache and of the shards that a stopped run left."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurize.cache import FeatureCache
from featurize.shards import FileIdentity, Shard

OLD_CACHE = -1


class KnownFeatures:
    """An index from file states and contents to features that are already on disk.

    Attributes:
        identities: per path, the state of the file that its features were computed from.
    """

    def __init__(self) -> None:
        self.identities: dict[str, FileIdentity] = {}
        self._place_of: dict[str, tuple[int, int]] = {}  # sha256 -> (source, row)
        self._cache: FeatureCache | None = None
        self._shards: list[Shard] = []
        self._loaded: tuple[int, NDArray[Any]] | None = None

    def add_cache(self, cache: FeatureCache) -> None:
        """Take in every row of a finished cache."""
        self._cache = cache
        columns = cache.columns
        facts = zip(
            columns.size.tolist(),
            columns.mtime_ns.tolist(),
            columns.sha256,
            columns.truncated.tolist(),
            strict=True,
        )
        identities = [FileIdentity(*values) for values in facts]
        self._take(OLD_CACHE, columns.path, identities)

    def add_shard(self, shard: Shard) -> None:
        """Take in every row of a shard."""
        self._shards.append(shard)
        self._take(len(self._shards) - 1, shard.paths, shard.identities)

    def has_content(self, sha256: str) -> bool:
        """Tell whether the features of a file with this content are known."""
        return sha256 in self._place_of

    def has_state(self, path: str, size: int, mtime_ns: int) -> bool:
        """Tell whether the file at ``path`` is as it was when its features were computed."""
        identity = self.identities.get(path)
        return identity is not None and (identity.size, identity.mtime_ns) == (size, mtime_ns)

    def gather(self, sha256s: list[str]) -> NDArray[Any]:
        """Return features (n, D) of known contents, reading each shard once if they come in its order."""
        rows = []
        for sha256 in sha256s:
            source, row = self._place_of[sha256]
            rows.append(self._source(source)[row])
        return np.stack(rows)

    def _take(self, source: int, paths: Any, identities: list[FileIdentity]) -> None:
        for row, (path, identity) in enumerate(zip(paths, identities, strict=True)):
            self.identities[path] = identity
            self._place_of.setdefault(identity.sha256, (source, row))

    def _source(self, source: int) -> NDArray[Any]:
        if source == OLD_CACHE:
            assert self._cache is not None
            return self._cache.features
        if self._loaded is None or self._loaded[0] != source:
            self._loaded = (source, self._shards[source].features())
        return self._loaded[1]
