"""Finished batches of a run that is not finished yet: ``features.h5.parts/``. A killed run goes on from here."""

from __future__ import annotations

import logging
import shutil
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from featurize.atomic import replacing

logger = logging.getLogger(__name__)

Features = NDArray[np.floating]


class FileIdentity(NamedTuple):
    """What tells one state of a file from another.

    Attributes:
        size: bytes.
        mtime_ns: time of the last change, nanoseconds since 1970.
        sha256: of the content, 64 hexadecimal digits.
        truncated: whether the end of the image is missing.
    """

    size: int
    mtime_ns: int
    sha256: str
    truncated: bool


class Row(NamedTuple):
    """One finished image: which file, in which state, with which features."""

    path: str
    identity: FileIdentity
    features: Features


@dataclass(frozen=True)
class Shard:
    """One file of finished rows, opened when its features are needed."""

    file: Path
    paths: list[str]
    identities: list[FileIdentity]

    def features(self) -> Features:
        """Return the rows' features (n, D)."""
        with np.load(self.file, allow_pickle=False) as content:
            features: Features = content["features"]
        return features


class ShardStore:
    """The folder of shards beside an output file.

    Args:
        folder: where the shards lie; made when the first is written.
        fingerprint: of the feature spec; shards of another one are thrown away.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self.shards: list[Shard] = []

    def load(self) -> None:
        """Read what an earlier run left; a damaged shard or one of another spec is deleted."""
        for file in sorted(self.folder.glob("*.npz")):
            shard = self._read(file) if file.name.startswith(self.fingerprint) else None
            if shard is None:
                logger.info("deleting the unusable shard %s", file.name)
                file.unlink()
            else:
                self.shards.append(shard)

    def append(self, rows: Iterable[Row]) -> None:
        """Write rows as one more shard, flushed to disk before this returns.

        Raises:
            OutputError: if it cannot be written; the shards before it stay.
        """
        rows = list(rows)
        number = int(self.shards[-1].file.stem.rpartition("-")[2]) + 1 if self.shards else 0
        file = self.folder / f"{self.fingerprint}-{number:08d}.npz"
        paths, identities = [row.path for row in rows], [row.identity for row in rows]
        with replacing(file) as partial, partial.open("wb") as stream:
            np.savez(
                stream,
                features=np.stack([row.features for row in rows]),
                paths=np.array([path.encode("utf-8", "surrogateescape") for path in paths]),
                **{  # type: ignore[arg-type]
                    name: np.array([getattr(identity, name) for identity in identities])
                    for name in FileIdentity._fields
                },
            )
        self.shards.append(Shard(file, paths, identities))

    def delete(self) -> None:
        """Remove the folder: the finished file holds everything now."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, file: Path) -> Shard | None:
        try:
            with np.load(file, allow_pickle=False) as content:
                columns = [content[name].tolist() for name in FileIdentity._fields]
                paths = [path.decode("utf-8", "surrogateescape") for path in content["paths"].tolist()]
                rows = content["features"].shape[0]  # reading it checks its CRC
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        identities = [FileIdentity(*values) for values in zip(*columns, strict=True)]
        return Shard(file, paths, identities) if rows == len(paths) else None
