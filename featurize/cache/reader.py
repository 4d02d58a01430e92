"""Opens and checks ``features.h5``. The format is described in docs/formats.md."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.cache.columns import CacheDescription, Columns, Correction, Skipped, content_digest, decode_column
from xfeat.featurize.cache.extra import ExtraColumn, StoredColumns, check_extra
from xfeat.featurize.cache.feature_file import FeatureFile
from xfeat.featurize.cache.images import search_images
from xfeat.featurize.cache.layout import (
    HDF5_SIGNATURE,
    REBUILD,
    Stored,
    damaged,
    has_user_block,
    not_a_cache,
    read_header,
    read_stored,
)
from xfeat.featurize.cache.schema1 import may_be_schema1, read_schema1
from xfeat.featurize.datasets.groups import joined_groups
from xfeat.featurize.datasets.layouts import NO_LABEL, NO_SPLIT, SPLITS
from xfeat.featurize.errors import CacheError, MismatchError, SpecError, XfeatError
from xfeat.featurize.specs import FeatureSpec
from xfeat.featurize.system.stored_paths import Search, StoredPath, absolute_form

_ROWS_AT_ONCE = 4096
# The square of it, times a billion rows, fits into float32. Features of the backbones are below 1,000.
_LARGEST = 1e14


@dataclass(frozen=True, kw_only=True)
class FeatureCache(CacheDescription):
    """An opened ``features.h5``.

    Attributes:
        path: the file.
        features: float32 or float16 (N, D), or (N, V, D) with views, memory-mapped and read-only.
        file: the same, to read rows from without mapping them.
        extra: further columns by name, each read when it is used first.
        schema_version: of the file.
        content_sha256: digest of features, labels, splits, paths and groups.
        created: time of writing, ISO 8601, UTC.
        versions: of the libraries that wrote it.
        written_in: absolute folder of the file when it was written; empty in caches of earlier versions, and if the
            data root is stored as an absolute path.
        stored_columns: those of the file, if ``columns`` were corrected since it was opened.
    """

    path: Path
    features: NDArray[Any]
    file: FeatureFile = field(compare=False)
    extra: Mapping[str, ExtraColumn]
    schema_version: int
    content_sha256: str
    created: str
    versions: dict[str, str]
    written_in: str
    stored_columns: Columns | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.columns.path)

    @cached_property
    def group_keys(self) -> NDArray[np.int64]:
        """The group of each row as a number (N,): equal for rows of one patient, and for copies of one image."""
        return joined_groups(self.columns.group, self.columns.sha256)

    @property
    def corrected_sha256(self) -> str:
        """``content_sha256``; of columns that were corrected since the file was opened, another digest."""
        if self.stored_columns is None:
            return self.content_sha256
        return hashlib.sha256(json.dumps([self.content_sha256, self.corrections]).encode()).hexdigest()

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
        try:
            with path.open("rb") as file:
                stored = _read_stored(file, path)
                features = FeatureFile(path, file, stored.features)
                cache = cls(
                    path=path,
                    file=features,
                    features=features.mapped(),
                    extra=StoredColumns(features, stored.header),
                    **_checked(path, stored),
                )
        except XfeatError:
            raise
        except (OSError, ValueError) as error:  # a ValueError if it was cut short meanwhile
            reason = getattr(error, "strerror", None) or error
            raise CacheError(
                f"cannot be read: {reason}", path=path, fix="check its permissions and the disk"
            ) from error
        if check:
            cache.verify()
        return cache

    def verify(self) -> None:
        """Check every row.

        Raises:
            CacheError: if a value is not finite, or anything differs from what was written.
        """
        digest, bad = hashlib.sha256(), []
        for first in range(0, len(self), _ROWS_AT_ONCE):
            rows = np.arange(first, min(first + _ROWS_AT_ONCE, len(self)))
            block = self.file.read(rows, None)
            bad += rows[~finite_rows(block)].tolist()
            digest.update(block.data)
        if bad:
            paths = ", ".join(self.columns.path[row] for row in bad[:5])
            what = f"rows with values that are not finite, or above {_LARGEST:g} ({len(bad)}): {paths}"
            raise CacheError(what, path=self.path, fix=REBUILD)
        if (found := content_digest(digest, self.stored_columns or self.columns)) != self.content_sha256:
            raise CacheError(
                "the features or labels have changed since it was written",
                path=self.path,
                expected=self.content_sha256,
                found=found,
                fix=REBUILD,
            )


def stored_digest(path: Path) -> str | None:
    """Return the ``content_sha256`` of a cache without reading more of it; ``None`` if the file is not a cache."""
    with suppress(OSError, CacheError), path.open("rb") as file:
        if has_user_block(file):
            return read_header(file, path)[1]["content_sha256"]
        if may_be_schema1(file):
            return read_schema1(path).header["content_sha256"]
    return None


def finite_rows(features: NDArray[Any]) -> NDArray[np.bool_]:
    """Return for each row (n,) whether all its values are finite, and so small that sums of their squares are."""
    most = min(_LARGEST, float(np.finfo(features.dtype).max))
    found: NDArray[np.bool_] = (np.abs(features) <= most).reshape(len(features), -1).all(axis=1)
    return found


def _read_stored(file: BinaryIO, path: Path) -> Stored:
    if has_user_block(file):
        return read_stored(file, path)
    file.seek(0)
    start = file.read(len(HDF5_SIGNATURE))
    if start == HDF5_SIGNATURE:
        return read_schema1(path)
    raise not_a_cache(path, "a file of another kind" if start else "an empty file")


def _checked(path: Path, stored: Stored) -> dict[str, Any]:
    """Return the fields of a cache, with values that can be right together."""
    header = stored.header
    try:
        check_extra(header)
    except ValueError as error:
        raise damaged(path, str(error)) from error
    columns = {name: decode_column(name, values) for name, values in stored.columns.items()}
    data_root, weights_path = (absolute_form(header[name], path.parent) for name in ("data_root", "weights_path"))
    spec = _read_spec(path, header["spec"], data_root)
    shape, dtype = stored.features["shape"], stored.features["dtype"]
    labels, corrections = range(NO_LABEL, len(header["class_names"])), header.get("corrections", [])
    for what, good in (
        ("a label is outside the class names", _is_within(columns["label"], labels)),
        ("it has other splits", header["split_names"] == list(SPLITS)),
        ("a split code is invalid", _is_within(columns["split"], (*range(len(SPLITS)), NO_SPLIT))),
        ("its fingerprint does not match its settings", header["fingerprint"] == spec.fingerprint),
        ("its features have another type than its settings", np.dtype(dtype) == spec.dtype),
        ("its views are others than its settings say", shape[1:-1] == [*spec.row_shape(1)[:-1]]),
        ("a text contains NUL", not any("\0" in text for name in ("path", "group") for text in columns[name])),
        ("a correction is not complete", all(len(row) == len(Correction._fields) for row in corrections)),
        ("a skipped image has no reason", all(len(row) == len(Skipped._fields) for row in header["skipped"])),
    ):
        if not good:
            raise damaged(path, what)
    return {
        "spec": spec,
        "class_names": tuple(header["class_names"]),
        "data_root": data_root,
        "weights_path": weights_path,
        "written_in": "" if data_root == header["data_root"] else header["written_in"],
        "columns": Columns(**columns),
        "skipped": [Skipped(*row) for row in header["skipped"]],
        "corrections": tuple(Correction(*row) for row in corrections),
        "schema_version": stored.schema_version,
        **{name: header[name] for name in ("content_sha256", "created", "versions", "layout", "left_out")},
    }


def _read_spec(path: Path, settings: dict[str, Any], data_root: str) -> FeatureSpec:
    try:
        return FeatureSpec.from_dict(settings)
    except SpecError as error:
        raise CacheError(f"unreadable settings: {error}", path=path, fix=REBUILD) from error
    except MismatchError as error:
        backbone = ["--backbone", str(settings["backbone"])]
        command = shlex.join(["xfeat", "featurize", data_root, *backbone, "-o", str(path), "--force"])
        raise MismatchError(error.what, path=path, expected=error.expected, found=error.found, fix=command) from error


def _is_within(values: NDArray[Any], allowed: Iterable[int]) -> bool:
    return bool(np.isin(values, list(allowed)).all())
