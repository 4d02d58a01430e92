"""Opens and checks ``features.h5``, schema version 1. The format is described in docs/formats.md."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.cache.columns import (
    COLUMN_NAMES,
    CacheDescription,
    Columns,
    Skipped,
    decode_column,
    digest_of_states,
    finish_digest,
    to_text,
)
from xfeat.featurize.cache.feature_file import FeatureFile
from xfeat.featurize.cache.images import search_images
from xfeat.featurize.datasets.groups import joined_groups
from xfeat.featurize.datasets.layouts import NO_LABEL, NO_SPLIT, SPLITS
from xfeat.featurize.errors import CacheError, MismatchError, SpecError, XfeatError
from xfeat.featurize.specs import FeatureSpec
from xfeat.featurize.system.filesystem import MAPPING, is_missing
from xfeat.featurize.system.stored_paths import Search, StoredPath, absolute_form

FORMAT = "xfeat.features"
SCHEMA_VERSION = 1
_ROWS_AT_ONCE = 4096
# The square of it, times a billion rows, fits into float32. Features of the backbones are below 1,000.
_LARGEST = 1e14


@dataclass(frozen=True, kw_only=True)
class FeatureCache(CacheDescription):
    """An opened ``features.h5``.

    Attributes:
        path: the file.
        features: float32 or float16 (N, D), or (N, V, D) with views, memory-mapped and read-only.
        content_sha256: digest of features, labels, splits, paths and groups.
        created: time of writing, ISO 8601, UTC.
        versions: of the libraries that wrote it.
        written_in: absolute folder of the file when it was written; empty in caches of earlier versions, and if the
            data root is stored as an absolute path.
        state: of the file when it was opened.
    """

    path: Path
    features: NDArray[Any]
    content_sha256: str
    created: str
    versions: dict[str, str]
    written_in: str
    state: os.stat_result = field(compare=False)

    def __len__(self) -> int:
        return len(self.columns.path)

    @cached_property
    def group_keys(self) -> NDArray[np.int64]:
        """The group of each row as a number (N,): equal for rows of one patient, and for copies of one image."""
        return joined_groups(self.columns.group, self.columns.sha256)

    @cached_property
    def file(self) -> FeatureFile | None:
        """The file to read rows from without mapping them; ``None`` where only the mapping is left."""
        return FeatureFile.open(self.path, self.features, self.state.st_ino)

    @property
    def stored_root(self) -> StoredPath:
        """The data root as it is stored."""
        return StoredPath(now=self.data_root, folder=self.path.parent, written_in=self.written_in)

    @cached_property
    def images(self) -> Search:
        """Where the images are: looked for in the data root, and beside the cache if that has moved."""
        return search_images(self.columns, [self.stored_root])

    @classmethod
    def open(cls, path: str | Path, *, check: bool = True) -> FeatureCache:
        """Open a cache; its features stay on disk until they are used.

        Args:
            path: the file.
            check: read it once and compare all rows with their digest, as :meth:`verify` does.

        Raises:
            CacheError: if the file is missing, damaged, of another schema version, or not a cache.
            MismatchError: if its features were computed in a way that this version does not support.
        """
        path = Path(path)
        if path.is_dir():
            raise CacheError(
                "this is a folder, not a feature cache", path=path, fix=f"xfeat featurize {path} -o features.h5"
            )
        if not path.is_file():
            raise CacheError("feature cache not found", path=path, fix=f"xfeat featurize DATA -o {path}")
        state = path.stat()
        with _reading(path) as file:
            _check_format(path, file)
            cache = cls(path=path, state=state, **_read(path, file))
        if check:
            cache.verify()
        return cache

    def verify(self) -> None:
        """Check every row.

        Raises:
            CacheError: if a value is not finite, or anything differs from what was written.
        """
        finite, digest, attributes = self._scan_rows()
        if not finite.all():
            raise self.not_finite_error(np.flatnonzero(~finite), fix=_REBUILD)
        states = digest_of_states(self.columns, self.skipped)
        for what, expected, found in (
            ("the features or labels have changed", self.content_sha256, digest),
            ("the counts have changed", attributes["counts"], json.dumps(self.counts)),
            # Caches of earlier versions have no such digest.
            ("the file records have changed", attributes.get("columns_sha256", states), states),
        ):
            if expected != found:
                raise CacheError(
                    f"{what} since it was written", path=self.path, expected=expected, found=found, fix=_REBUILD
                )

    def not_finite_error(self, rows: NDArray[np.int64], *, fix: str) -> CacheError:
        """Return the error for rows with values that are not finite; it names the first five."""
        paths = ", ".join(self.columns.path[row] for row in rows[:5])
        what = f"rows with values that are not finite, or above {_LARGEST:g} ({len(rows)}): {paths}"
        return CacheError(what, path=self.path, fix=fix)

    def _scan_rows(self) -> tuple[NDArray[np.bool_], str, dict[str, Any]]:
        """Return which rows are finite, the digest of the content, and the attributes."""
        # Read, not mapped: pages of a mapped file would count as this process's memory.
        finite = np.ones(len(self), dtype=bool)
        digest = hashlib.sha256()
        with _reading(self.path) as file:
            for first in range(0, len(self), _ROWS_AT_ONCE):
                block = file["features"][first : first + _ROWS_AT_ONCE]
                finite[first : first + len(block)] = finite_rows(block)
                digest.update(np.ascontiguousarray(block).data)
            attributes = dict(file.attrs)
        return finite, finish_digest(digest, self.columns), attributes


def stored_digest(path: Path) -> str | None:
    """Return the ``content_sha256`` of a cache without reading more of it; ``None`` if the file is not a cache."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            return str(file.attrs["content_sha256"]) if file.attrs.get("format") == FORMAT else None
    except (OSError, KeyError, ValueError, TypeError, RuntimeError):
        return None


def finite_rows(features: NDArray[Any]) -> NDArray[np.bool_]:
    """Return for each row (n,) whether all its values are finite, and so small that sums of their squares are."""
    most = min(_LARGEST, float(np.finfo(features.dtype).max))
    found: NDArray[np.bool_] = (np.abs(features) <= most).reshape(len(features), -1).all(axis=1)
    return found


_REBUILD = "delete the file and run xfeat featurize again, or restore a copy"


@contextmanager
def _reading(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file; errors of h5py become a :class:`CacheError`."""
    try:
        # Caches are replaced, never changed in place: HDF5's own lock, which many mounts refuse, protects nothing.
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except SpecError as error:
        raise CacheError(f"unreadable settings: {error}", path=path, fix=_REBUILD) from error
    except XfeatError:
        raise
    except OSError as error:
        if error.errno is not None:
            raise _unreadable(path, error) from error
        kind = "damaged: its end is missing" if "truncated file" in str(error) else "damaged, or not a feature cache"
        raise CacheError(
            kind, path=path, expected="an HDF5 file that xfeat featurize wrote", found=str(error), fix=_REBUILD
        ) from error
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise CacheError("damaged", path=path, found=str(error), fix=_REBUILD) from error


def _unreadable(path: Path, error: OSError) -> CacheError:
    """Return an error that says why a file cannot be read although it may be intact."""
    reason = os.strerror(error.errno or 0)
    return CacheError(f"cannot be read: {reason}", path=path, fix="check its permissions and the disk")


def _check_format(path: Path, file: h5py.File) -> None:
    if file.attrs.get("format") != FORMAT:
        raise CacheError(
            "not a feature cache",
            path=path,
            expected="an HDF5 file that xfeat featurize wrote",
            found="an HDF5 file of another program",
            fix="choose another file, or move this one away and run xfeat featurize",
        )
    version = int(file.attrs["schema_version"])
    if version != SCHEMA_VERSION:
        raise CacheError(
            "the feature cache has another schema version",
            path=path,
            expected=f"version {SCHEMA_VERSION}",
            found=f"version {version}",
            fix="install the version of xfeat that wrote it, or run xfeat featurize --force",
        )


def _read(path: Path, file: h5py.File) -> dict[str, Any]:
    attrs = file.attrs
    columns = {name: decode_column(name, _read_column(file, name)) for name in COLUMN_NAMES}
    lengths = {len(values) for values in columns.values()} | {file["features"].shape[0]}
    if len(lengths) != 1:
        raise CacheError("damaged: its columns differ in length", path=path, fix=_REBUILD)
    data_root, weights_path = (absolute_form(str(attrs[name]), path.parent) for name in ("data_root", "weights_path"))
    spec = _read_spec(path, json.loads(attrs["spec"]), data_root)
    class_names = tuple(json.loads(attrs["class_names"]))
    for what, good in (
        ("a label is outside the class names", _is_within(columns["label"], range(NO_LABEL, len(class_names)))),
        ("a split code is invalid", _is_within(columns["split"], (*range(len(SPLITS)), NO_SPLIT))),
        ("its fingerprint does not match its settings", attrs["fingerprint"] == spec.fingerprint),
    ):
        if not good:
            raise CacheError(f"damaged: {what}", path=path, fix=_REBUILD)
    return {
        "spec": spec,
        "class_names": class_names,
        "data_root": data_root,
        "weights_path": weights_path,
        "written_in": "" if data_root == attrs["data_root"] else str(attrs.get("written_in", "")),
        "features": _map_features(path, file["features"]),
        "columns": Columns(**columns),
        "skipped": [Skipped(*(to_text(value) for value in row)) for row in file["skipped"][()]],
        "content_sha256": str(attrs["content_sha256"]),
        "created": str(attrs["created"]),
        "versions": json.loads(attrs["versions"]),
        "layout": str(attrs.get("layout", "")),
        "left_out": json.loads(attrs.get("left_out", "{}")),
    }


def _read_spec(path: Path, settings: dict[str, Any], data_root: str) -> FeatureSpec:
    try:
        return FeatureSpec.from_dict(settings)
    except MismatchError as error:
        backbone = ["--backbone", str(settings["backbone"])]
        command = shlex.join(["xfeat", "featurize", data_root, *backbone, "-o", str(path), "--force"])
        raise MismatchError(error.what, path=path, expected=error.expected, found=error.found, fix=command) from error


def _read_column(file: h5py.File, name: str) -> NDArray[Any]:
    try:
        values: NDArray[Any] = file[name][()]
    except KeyError:
        if name != "change_mark":
            raise
        values = np.zeros(file["mtime_ns"].shape, np.int64)  # a cache of an earlier version
    return values


def _is_within(values: NDArray[Any], allowed: Iterable[int]) -> bool:
    return bool(np.isin(values, list(allowed)).all())


def _map_features(path: Path, dataset: h5py.Dataset) -> NDArray[Any]:
    offset = dataset.id.get_offset()
    if offset is None:  # rewritten by another program with chunks or compression
        return np.asarray(dataset)
    try:
        return np.memmap(path, dtype=dataset.dtype, mode="r", offset=offset, shape=dataset.shape)
    except OSError as error:
        if not is_missing(MAPPING, error, path):
            raise
        return np.asarray(dataset)
