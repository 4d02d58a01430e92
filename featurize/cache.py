"""``features.h5``, schema version 1: reading and writing. docs/formats.md is its written form."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from featurize.atomic import replacing
from featurize.dataset import NO_LABEL, NO_SPLIT, SPLITS
from featurize.errors import CacheError, SpecError, XfeatError
from featurize.specs import FeatureSpec

FORMAT = "xfeat.features"
SCHEMA_VERSION = 1

_TEXT = h5py.string_dtype("utf-8")
_SKIPPED = np.dtype([("path", _TEXT), ("reason", _TEXT)])
_COLUMNS = ("label", "split", "path", "group", "sha256", "size", "mtime_ns", "truncated")


class Skipped(NamedTuple):
    """An image that could not be read, and why."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Everything a cache says of its N images besides their features; all of length N.

    Attributes:
        label: int32, index into the class names, -1 if none.
        split: uint8, index into train, valid, test; 255 if none.
        path: relative to the data root, forward slashes.
        group: patient or series, empty if unknown.
        sha256: of the file's content, 64 hexadecimal digits.
        size: int64, bytes.
        mtime_ns: int64, nanoseconds since 1970.
        truncated: bool, the end of the image is missing.
    """

    label: NDArray[np.int32]
    split: NDArray[np.uint8]
    path: Sequence[str]
    group: Sequence[str]
    sha256: Sequence[str]
    size: NDArray[np.int64]
    mtime_ns: NDArray[np.int64]
    truncated: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class FeatureCache:
    """An opened ``features.h5``.

    Attributes:
        path: the file.
        spec: what a row of features is.
        class_names: sorted; labels are indices into it.
        data_root: the folder that paths are relative to, when the cache was made.
        weights_path: the weights file that was used, when the cache was made.
        features: float32 or float16 (N, D), or (N, V, D) with views, memory-mapped and read-only.
        columns: the other facts of each row.
        skipped: images that could not be read.
        content_sha256: digest of features, labels, splits, paths and groups.
        created: time of writing, ISO 8601, UTC.
        versions: of the libraries that made it.
    """

    path: Path
    spec: FeatureSpec
    class_names: tuple[str, ...]
    data_root: str
    weights_path: str
    features: NDArray[Any]
    columns: Columns
    skipped: list[Skipped]
    content_sha256: str
    created: str
    versions: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.columns.path)

    @cached_property
    def counts(self) -> dict[str, dict[str, int]]:
        """Number of images per split and class; images without either count under ``none``."""
        return count_images(self.columns.split, self.columns.label, self.class_names)

    @classmethod
    def open(cls, path: str | Path) -> FeatureCache:
        """Open a cache; its features stay on disk until they are used.

        Raises:
            CacheError: if the file is missing, is no cache, is damaged, or is of another schema version.
        """
        path = Path(path)
        if not path.is_file():
            raise CacheError("no such feature cache", path=path, mend=f"xfeat featurize DATA -o {path}")
        try:
            with h5py.File(path, "r") as file:
                _check_format(path, file)
                return cls(path=path, **_read(path, file))
        except XfeatError as error:
            if isinstance(error, SpecError):
                raise CacheError(f"unreadable settings: {error}", path=path, mend=_MAKE_AGAIN) from error
            raise
        except OSError as error:
            kind = "damaged: its end is missing" if "truncated file" in str(error) else "not a feature cache"
            raise CacheError(
                kind,
                path=path,
                expected="an HDF5 file that xfeat featurize wrote",
                found=str(error),
                mend=_MAKE_AGAIN,
            ) from error
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise CacheError("damaged", path=path, found=str(error), mend=_MAKE_AGAIN) from error

    def verify(self) -> None:
        """Check every row.

        Raises:
            CacheError: if a value is not finite, or anything differs from what was written.
        """
        finite, digest, attributes = self._read_through()
        if not finite.all():
            bad = [self.columns.path[i] for i in np.flatnonzero(~finite)[:5]]
            raise CacheError(
                f"{int((~finite).sum())} rows hold values that are not finite: {', '.join(bad)}",
                path=self.path,
                mend=_MAKE_AGAIN,
            )
        states = _digest_of_states(self.columns, self.skipped)
        for what, expected, found in (
            ("the content has changed", self.content_sha256, digest),
            ("the counts have changed", attributes["counts"], json.dumps(self.counts)),
            # Caches of earlier versions have no such digest.
            ("what it says of the files has changed", attributes.get("columns_sha256", states), states),
        ):
            if expected != found:
                raise CacheError(
                    f"{what} since it was written", path=self.path, expected=expected, found=found, mend=_MAKE_AGAIN
                )

    def _read_through(self) -> tuple[NDArray[np.bool_], str, dict[str, Any]]:
        """Return which rows are finite, the digest of the content, and the attributes."""
        # Read, not mapped: pages of a mapped file would count as this process's memory.
        finite = np.ones(len(self), dtype=bool)
        digest = hashlib.sha256()
        with h5py.File(self.path, "r") as file:
            for rows in _blocks(len(self)):
                block = file["features"][rows]
                finite[rows] = np.isfinite(block).reshape(len(block), -1).all(axis=1)
                digest.update(np.ascontiguousarray(block).data)
            attributes = dict(file.attrs)
        return finite, _with_columns(digest, self.columns), attributes


_MAKE_AGAIN = "delete it and run xfeat featurize again, or restore a copy"


def write_cache(
    path: Path,
    *,
    spec: FeatureSpec,
    class_names: Sequence[str],
    data_root: str,
    weights_path: str,
    blocks: Iterable[tuple[int, NDArray[Any]]],
    dim: int,
    columns: Columns,
    skipped: Sequence[Skipped],
) -> None:
    """Write a cache, whole or not at all.

    Args:
        path: the file to write or replace.
        spec: what a row of features is.
        class_names: sorted names; labels are indices into it.
        data_root: the folder that paths are relative to.
        weights_path: the weights file that was used.
        blocks: (first row, features (n, D) or (n, V, D)) that together fill all rows, in order.
        dim: D.
        columns: the other facts of each row.
        skipped: images that could not be read.

    Raises:
        OutputError: if it cannot be written.
    """
    count = len(columns.path)
    with replacing(path) as partial, _creating(partial) as file:
        # Contiguous, so that readers can map it into memory; see docs/decisions.
        shape = (count, *spec.row_shape(dim))
        features = file.create_dataset("features", shape=shape, dtype=spec.dtype)
        digest = hashlib.sha256()
        filled = 0
        for first, block in blocks:
            if first != filled:
                raise RuntimeError(f"a block for row {first} comes after {filled} rows")
            features[first : first + len(block)] = block
            digest.update(np.ascontiguousarray(block, dtype=spec.dtype).data)
            filled += len(block)
        if filled != count:
            raise RuntimeError(f"{filled} rows of features for {count} images")
        for name in _COLUMNS:
            file.create_dataset(name, data=_as_stored(name, getattr(columns, name)))
        file.create_dataset("skipped", data=np.array([tuple(map(_bytes, row)) for row in skipped], dtype=_SKIPPED))
        file.flush()
        attributes = {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "spec": json.dumps(spec.to_dict()),
            "fingerprint": spec.fingerprint,
            "class_names": json.dumps(list(class_names)),
            "split_names": json.dumps(SPLITS),
            "counts": json.dumps(count_images(columns.split, columns.label, class_names)),
            "data_root": data_root,
            "weights_path": weights_path,
            "content_sha256": _with_columns(digest, columns),
            "columns_sha256": _digest_of_states(columns, skipped),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": json.dumps(library_versions()),
        }
        for key, value in attributes.items():
            if isinstance(value, str):
                file.attrs.create(key, _bytes(value), dtype=_TEXT)
            else:
                file.attrs[key] = value


@contextmanager
def _creating(path: Path) -> Iterator[h5py.File]:
    """Open a new HDF5 file; on a full disk closing it fails too, with another exception than writing."""
    file = h5py.File(path, "w")
    try:
        yield file
        file.close()
    except (OSError, RuntimeError) as error:
        with suppress(OSError, RuntimeError):
            file.close()
        number = re.search(r"errno = (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def _with_columns(digest: hashlib._Hash, columns: Columns) -> str:
    """Finish a digest over all features with labels, splits, paths and groups."""
    digest.update(np.asarray(columns.label, np.int32).tobytes() + np.asarray(columns.split, np.uint8).tobytes())
    for texts in (columns.path, columns.group):
        digest.update("\0".join(texts).encode("utf-8", "surrogateescape") + b"\0\0")
    return digest.hexdigest()


def _digest_of_states(columns: Columns, skipped: Sequence[Skipped]) -> str:
    """Return the digest of what is said of the files: digests, sizes, times, truncated ends, and those skipped."""
    digest = hashlib.sha256("".join(columns.sha256).encode())
    digest.update(np.asarray(columns.size, np.int64).tobytes() + np.asarray(columns.mtime_ns, np.int64).tobytes())
    digest.update(np.asarray(columns.truncated, np.bool_).tobytes())
    digest.update(b"".join(_bytes(text) + b"\0" for row in skipped for text in row))
    return digest.hexdigest()


def count_images(
    split: NDArray[np.uint8], label: NDArray[np.int32], class_names: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Count images per split and class, both by name."""
    pairs = Counter(zip(split.tolist(), label.tolist(), strict=True))
    counts: dict[str, dict[str, int]] = {}
    for (split_code, label_code), number in sorted(pairs.items()):
        split_name = "none" if split_code == NO_SPLIT else SPLITS[split_code]
        class_name = "none" if label_code == NO_LABEL else class_names[label_code]
        counts.setdefault(split_name, {})[class_name] = number
    return counts


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed libraries that decide about results."""
    versions = {"python": sys.version.split()[0]}
    for name in (
        "xfeat",
        "torch",
        "onnxruntime-gpu",
        "onnxruntime",
        "numpy",
        "pillow",
        "h5py",
        "scikit-learn",
    ):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _blocks(count: int, rows: int = 4096) -> Iterable[slice]:
    return (slice(first, min(first + rows, count)) for first in range(0, count, rows))


def _as_stored(name: str, values: Any) -> Any:
    if name in ("path", "group"):
        return np.array([_bytes(text) for text in values], dtype=_TEXT)
    return np.array(values, dtype="S64") if name == "sha256" else values


def _check_format(path: Path, file: h5py.File) -> None:
    if file.attrs.get("format") != FORMAT:
        raise CacheError(
            "not a feature cache",
            path=path,
            expected="an HDF5 file that xfeat featurize wrote",
            found="an HDF5 file of another program",
            mend="name another file, or move it away and run xfeat featurize",
        )
    version = int(file.attrs["schema_version"])
    if version != SCHEMA_VERSION:
        raise CacheError(
            "a cache of another schema version",
            path=path,
            expected=f"version {SCHEMA_VERSION}",
            found=f"version {version}",
            mend="install the xfeat that wrote it, or run xfeat featurize --force",
        )


def _read(path: Path, file: h5py.File) -> dict[str, Any]:
    attrs = file.attrs
    columns = {name: _as_read(name, file[name][()]) for name in _COLUMNS}
    lengths = {len(values) for values in columns.values()} | {file["features"].shape[0]}
    if len(lengths) != 1:
        raise CacheError("damaged: its columns differ in length", path=path, mend=_MAKE_AGAIN)
    spec = FeatureSpec.from_dict(json.loads(attrs["spec"]))
    class_names = tuple(json.loads(attrs["class_names"]))
    for what, good in (
        ("a label is outside the class names", _is_within(columns["label"], range(NO_LABEL, len(class_names)))),
        ("a split is none of those that there are", _is_within(columns["split"], (*range(len(SPLITS)), NO_SPLIT))),
        ("its fingerprint is not that of its settings", attrs["fingerprint"] == spec.fingerprint),
    ):
        if not good:
            raise CacheError(f"damaged: {what}", path=path, mend=_MAKE_AGAIN)
    return {
        "spec": spec,
        "class_names": class_names,
        "data_root": str(attrs["data_root"]),
        "weights_path": str(attrs["weights_path"]),
        "features": _map_features(path, file["features"]),
        "columns": Columns(**columns),
        "skipped": [Skipped(*(_text(value) for value in row)) for row in file["skipped"][()]],
        "content_sha256": str(attrs["content_sha256"]),
        "created": str(attrs["created"]),
        "versions": json.loads(attrs["versions"]),
    }


def _is_within(values: NDArray[Any], allowed: Iterable[int]) -> bool:
    return bool(np.isin(values, list(allowed)).all())


def _map_features(path: Path, dataset: h5py.Dataset) -> NDArray[Any]:
    offset = dataset.id.get_offset()
    if offset is None:  # rewritten by another program with chunks or compression
        return np.asarray(dataset)
    return np.memmap(path, dtype=dataset.dtype, mode="r", offset=offset, shape=dataset.shape)


def _as_read(name: str, values: NDArray[Any]) -> Any:
    if name in ("path", "group"):
        return [_text(value) for value in values]
    return [value.decode() for value in values.tolist()] if name == "sha256" else values


def _bytes(text: str) -> bytes:
    # File names are bytes to the operating system; surrogates carry the ones that are no UTF-8.
    return text.encode("utf-8", "surrogateescape")


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")
