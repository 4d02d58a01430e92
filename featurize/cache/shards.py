"""Checkpoints of an unfinished run: shards of finished rows in ``features.h5.parts/``, from which a run resumes."""

from __future__ import annotations

import logging
import re
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.cache.columns import to_bytes, to_text
from xfeat.featurize.system.atomic import output_error, replacing

logger = logging.getLogger(__name__)

# An empty file beside the shards of a run with --force: earlier shards have been deleted already.
_FORCE_MARKER = "started-anew"

Features = NDArray[np.floating[Any]]


class FileIdentity(NamedTuple):
    """The state of a file when it was read.

    Attributes:
        size: bytes.
        mtime_ns: time of the last change, nanoseconds since 1970; 0 if it was too recent to be relied on.
        change_mark: see :class:`xfeat.featurize.sources.image_source.FileState`.
        sha256: of the content, 64 hexadecimal digits.
        truncated: whether the end of the image is missing.
    """

    size: int
    mtime_ns: int
    change_mark: int
    sha256: str
    truncated: bool


class Row(NamedTuple):
    """One finished image: which file, in which state, with which features (D,) or (V, D)."""

    path: str
    identity: FileIdentity
    features: Features


# Many file states as one array, with the fields of FileIdentity: a million objects would need too much memory.
IDENTITY = np.dtype(
    [("size", np.int64), ("mtime_ns", np.int64), ("change_mark", np.int64), ("sha256", "S64"), ("truncated", np.bool_)]
)
Identities = NDArray[np.void]
"""File states of dtype :data:`IDENTITY`."""


@dataclass(frozen=True)
class Shard:
    """One file of finished rows, opened when its features are needed."""

    file: Path
    rows: int

    def features(self) -> Features:
        """Return the features (n, D) or (n, V, D)."""
        with np.load(self.file, allow_pickle=False) as content:
            features: Features = content["features"]
        return features


class ShardStore:
    """The shards of one output file and one spec.

    Attributes:
        folder: where they are stored.
        fingerprint: of the spec that their features were computed with.
        data_root: the folder or archive that this run's paths are relative to.
    """

    def __init__(self, folder: Path, fingerprint: str, data_root: str) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self.data_root = data_root
        self._next_number = 0
        self._row_shape: tuple[int, ...] = ()

    def discard_earlier(self) -> None:
        """Delete earlier shards, for a run with ``--force``; shards of a stopped run with ``--force`` are resumed.

        Raises:
            OutputError: if the folder cannot be changed.
        """
        marker = self.folder / _FORCE_MARKER
        if marker.exists():
            return
        try:
            if self.folder.exists():
                shutil.rmtree(self.folder)
            self.folder.mkdir(parents=True)
            marker.touch()
        except OSError as error:
            raise output_error(self.folder, error) from error

    def resume(self) -> None:
        """Use the shards there are; the next run with ``--force`` deletes them."""
        with suppress(OSError):
            (self.folder / _FORCE_MARKER).unlink()

    def load(self) -> Iterator[tuple[Shard, list[str], Identities]]:
        """Yield the shards of an earlier run, oldest first; a damaged shard or one of another spec is deleted.

        Images of another data root have no times: they are compared by content alone.
        """
        for file in sorted(self.folder.glob("*.npz")):
            name = re.fullmatch(rf"{self.fingerprint}-(\d{{8,18}})", file.stem, re.ASCII)
            found = self._read(file) if name is not None else None
            if name is None or found is None:
                logger.info("deleting unusable checkpoint %s", file.name)
                with suppress(OSError):
                    file.unlink()
            else:
                self._next_number = int(name[1]) + 1
                yield found

    def append(self, rows: Sequence[Row]) -> tuple[Shard, Identities]:
        """Write rows as a new shard, flushed to disk before this returns.

        Raises:
            OutputError: if it cannot be written; earlier shards stay.
        """
        file = self.folder / f"{self.fingerprint}-{self._next_number:08d}.npz"
        identities = np.array([row.identity for row in rows], IDENTITY)
        content: dict[str, Any] = {name: identities[name] for name in FileIdentity._fields}
        content["features"] = np.stack([row.features for row in rows])
        content["paths"] = np.array([to_bytes(row.path) for row in rows])
        content["data_root"] = np.array(to_bytes(self.data_root))
        with replacing(file) as partial, partial.open("wb") as stream:
            np.savez(stream, **content)
        self._next_number += 1
        return Shard(file, len(rows)), identities

    def delete(self) -> None:
        """Remove the folder: the cache contains everything now."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, file: Path) -> tuple[Shard, list[str], Identities] | None:
        try:
            with zipfile.ZipFile(file) as archive:
                if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                    return None  # written so by another program: it could inflate without end
            with file.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
                shape = content["features"].shape  # reading it checks its CRC
                identities = np.zeros(shape[0], IDENTITY)
                for name in FileIdentity._fields:
                    if name != "change_mark" or name in content:  # shards of earlier versions have none
                        values = content[name].astype(IDENTITY[name], casting="no")
                        identities[name] = values.reshape(shape[0])
                if content["data_root"].item() != to_bytes(self.data_root):
                    identities["mtime_ns"] = 0  # equal times of files in another folder do not mean equal files
                paths = [to_text(path) for path in content["paths"].tolist()]
                digests = {len(bytes.fromhex(digest.decode())) for digest in identities["sha256"].tolist()}
        except Exception:  # noqa: BLE001 - whatever is wrong with it, its images are computed again
            return None
        self._row_shape = self._row_shape or shape[1:]
        right = len(paths) == len(identities) and digests == {32} and shape[1:] == self._row_shape != ()
        return (Shard(file, shape[0]), paths, identities) if right else None
