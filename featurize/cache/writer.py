"""Writes ``features.h5``, whole or not at all. The format is described in docs/formats.md."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.cache.columns import (
    COLUMN_NAMES,
    TEXT,
    CacheDescription,
    digest_of_states,
    encode_column,
    finish_digest,
    to_bytes,
)
from xfeat.featurize.cache.reader import FORMAT, SCHEMA_VERSION
from xfeat.featurize.datasets.layouts import SPLITS
from xfeat.featurize.errors import CacheError
from xfeat.featurize.system.atomic import replacing
from xfeat.featurize.system.stored_paths import stored_form
from xfeat.featurize.system.versions import library_versions

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SKIPPED = np.dtype([("path", TEXT), ("reason", TEXT)])


def write_cache(
    path: Path, description: CacheDescription, *, blocks: Iterable[tuple[int, NDArray[Any]]], dim: int
) -> None:
    """Write a cache, whole or not at all.

    Args:
        path: the file to write or replace.
        description: everything but the features.
        blocks: (first row, features (n, D) or (n, V, D)) that together fill all rows, in order.
        dim: D.

    Raises:
        OutputError: if it cannot be written.
    """
    spec, columns = description.spec, description.columns
    count = len(columns.path)
    with replacing(path) as partial, _creating(partial) as file:
        # Contiguous, so that readers can map it into memory; see docs/decisions.
        features = file.create_dataset("features", shape=(count, *spec.row_shape(dim)), dtype=spec.dtype)
        digest = _fill(features, blocks)
        for name in COLUMN_NAMES:
            file.create_dataset(name, data=encode_column(name, getattr(columns, name)))
        skipped = [tuple(map(to_bytes, row)) for row in description.skipped]
        file.create_dataset("skipped", data=np.array(skipped, dtype=_SKIPPED))
        file.flush()
        file.attrs["schema_version"] = SCHEMA_VERSION
        for key, value in _texts(description, finish_digest(digest, columns), path.parent).items():
            file.attrs.create(key, to_bytes(value), dtype=TEXT)


def check_replaceable(path: Path) -> None:
    """Check that ``--force`` may replace the file at ``path``: a cache, a damaged cache, or no file at all.

    Raises:
        CacheError: if it is anything else, which would be lost.
    """
    if not path.exists():
        return
    if path.is_dir():
        raise _not_replaceable(path, "a folder")
    try:
        with path.open("rb") as file:
            start = file.read(len(_SIGNATURE))
    except OSError as error:
        raise _not_replaceable(path, error.strerror or str(error)) from error
    if start != _SIGNATURE:
        raise _not_replaceable(path, "a file of another kind")
    try:
        with h5py.File(path, "r", locking=False) as file:
            kind = file.attrs.get("format")
    except (OSError, RuntimeError, KeyError, ValueError, TypeError):
        return  # damaged: nothing in it can be read
    if kind != FORMAT:
        raise _not_replaceable(path, "an HDF5 file of another program")


def _not_replaceable(path: Path, found: str) -> CacheError:
    return CacheError(
        "--force replaces only feature caches",
        path=path,
        expected="an HDF5 file that xfeat featurize wrote",
        found=found,
        fix="choose another file with -o, or move this one away",
    )


def _texts(description: CacheDescription, content_sha256: str, folder: Path) -> dict[str, str]:
    return {
        "format": FORMAT,
        "spec": json.dumps(description.spec.to_dict()),
        "fingerprint": description.spec.fingerprint,
        "class_names": json.dumps(description.class_names),
        "split_names": json.dumps(SPLITS),
        "counts": json.dumps(description.counts),
        "data_root": stored_form(description.data_root, folder),
        "weights_path": stored_form(description.weights_path, folder),
        "written_in": os.path.abspath(folder),
        "layout": description.layout,
        "left_out": json.dumps(description.left_out),
        "content_sha256": content_sha256,
        "columns_sha256": digest_of_states(description.columns, description.skipped),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": json.dumps(library_versions()),
    }


def _fill(features: h5py.Dataset, blocks: Iterable[tuple[int, NDArray[Any]]]) -> hashlib._Hash:
    """Write all rows; return the digest of their bytes."""
    digest = hashlib.sha256()
    filled = 0
    for first, block in blocks:
        if first != filled:
            raise RuntimeError(f"a block for row {first} comes after {filled} rows")
        features[first : first + len(block)] = block
        digest.update(np.ascontiguousarray(block, dtype=features.dtype).data)
        filled += len(block)
    if filled != len(features):
        raise RuntimeError(f"{filled} rows of features for {len(features)} images")
    return digest


@contextmanager
def _creating(path: Path) -> Iterator[h5py.File]:
    """Open a new HDF5 file; on a full disk closing it fails too, with another exception than writing."""
    file = h5py.File(path, "w", locking=False)
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
