"""Writes ``features.h5``, whole or not at all. The format is described in docs/formats.md."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.cache.columns import CacheDescription, Skipped, content_digest, encode_column, to_bytes
from xfeat.featurize.cache.extra import ExtraColumn, dataset_name, stored_arrays
from xfeat.featurize.cache.layout import (
    BLOCK_BYTES,
    COLUMNS,
    FORMAT,
    HDF5_SIGNATURE,
    SCHEMA_VERSION,
    Header,
    Place,
    has_user_block,
    rest_digest,
    user_block,
)
from xfeat.featurize.cache.schema1 import may_be_schema1
from xfeat.featurize.datasets.layouts import SPLITS
from xfeat.featurize.errors import CacheError
from xfeat.featurize.system.atomic import replacing
from xfeat.featurize.system.stored_paths import stored_form
from xfeat.featurize.system.versions import library_versions


def write_cache(
    path: Path,
    description: CacheDescription,
    *,
    blocks: Iterable[tuple[int, NDArray[Any]]],
    dim: int,
    extra: Mapping[str, ExtraColumn] | None = None,
) -> None:
    """Write a cache, whole or not at all.

    Args:
        path: the file to write or replace.
        description: everything but the features.
        blocks: (first row, features (n, D) or (n, V, D)) that together fill all rows, in order.
        dim: D.
        extra: further columns by name.

    Raises:
        OutputError: if it cannot be written.
    """
    spec = description.spec
    columns = {name: encode_column(name, getattr(description.columns, name)) for name in COLUMNS}
    extra = extra or {}
    columns |= stored_arrays(extra)
    with replacing(path) as partial:
        with _creating(partial) as file:
            # Contiguous, so that readers can map it into memory; see docs/decisions.
            shape = (len(columns["label"]), *spec.row_shape(dim))
            features = file.create_dataset("features", shape=shape, dtype=spec.dtype)
            digest = content_digest(_fill(features, blocks), description.columns)
            arrays = {"features": _place(features)}
            for name, values in columns.items():
                arrays[name] = _add(file, name, values)
            header = json.dumps(_header(description, digest, path.parent, arrays, extra)).encode()
            place = _add(file, "header", np.array(header))
            file.create_dataset("skipped", data=_skipped_table(description.skipped))
            # For readers of version 1, which say then that they know no version 2.
            file.attrs["format"], file.attrs["schema_version"] = FORMAT, SCHEMA_VERSION
        with partial.open("r+b") as raw:
            block = user_block(place["offset"], len(header), rest_digest(raw, arrays["features"]))
            raw.seek(0)
            raw.write(block)


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
            if has_user_block(file) or may_be_schema1(file):
                return
            file.seek(0)
            hdf5 = file.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE
    except OSError as error:
        raise _not_replaceable(path, error.strerror or str(error)) from error
    raise _not_replaceable(path, "an HDF5 file of another program, or damaged" if hdf5 else "a file of another kind")


def _not_replaceable(path: Path, found: str) -> CacheError:
    return CacheError(
        "--force replaces only feature caches",
        path=path,
        expected="an HDF5 file that xfeat featurize wrote",
        found=found,
        fix="choose another file with -o, or move this one away",
    )


def _header(
    description: CacheDescription,
    content_sha256: str,
    folder: Path,
    arrays: dict[str, Place],
    extra: Mapping[str, ExtraColumn],
) -> Header:
    header: Header = {
        "spec": description.spec.to_dict(),
        "fingerprint": description.spec.fingerprint,
        "class_names": list(description.class_names),
        "split_names": list(SPLITS),
        "data_root": stored_form(description.data_root, folder),
        "weights_path": stored_form(description.weights_path, folder),
        "written_in": os.path.abspath(folder),
        "layout": description.layout,
        "left_out": description.left_out,
        "skipped": [list(row) for row in description.skipped],
        "content_sha256": content_sha256,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": library_versions(),
        "arrays": arrays,
        "extra": {
            name: {"kind": column.kind, "names": list(column.names), "source": column.source}
            for name, column in extra.items()
        },
    }
    if description.corrections:
        header["corrections"] = [list(row) for row in description.corrections]
    return header


def _add(file: h5py.File, name: str, values: NDArray[Any]) -> Place:
    """Add an array to a file, bytes as UTF-8 text except for digests and the header."""
    if values.dtype.kind == "S" and name not in ("sha256", "header"):
        values = values.astype(h5py.string_dtype("utf-8", values.dtype.itemsize))
    return _place(file.create_dataset(dataset_name(name), data=values))


def _skipped_table(skipped: Sequence[Skipped]) -> NDArray[Any]:
    """Return the table of skipped images for other programs; xfeat reads it from the header."""
    rows = [tuple(map(to_bytes, image)) for image in skipped]
    widths = [max([1, *map(len, column)]) for column in zip(*rows, strict=True)] or [1, 1]
    return np.array(
        rows, [(name, h5py.string_dtype("utf-8", width)) for name, width in zip(Skipped._fields, widths, strict=True)]
    )


def _place(dataset: h5py.Dataset) -> Place:
    dtype = dataset.dtype.newbyteorder("<")
    return {"dtype": dtype.str, "shape": list(dataset.shape), "offset": dataset.id.get_offset()}


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
    file = h5py.File(path, "w", locking=False, userblock_size=BLOCK_BYTES)
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
