"""Writes ``features.h5``, whole or not at all. The format is described in docs/formats.md."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.cache.columns import (
    COLUMN_NAMES,
    TEXT,
    Columns,
    Skipped,
    count_images,
    digest_of_states,
    encode_column,
    finish_digest,
    to_bytes,
)
from xfeat.featurize.cache.reader import FORMAT, SCHEMA_VERSION
from xfeat.featurize.datasets.layouts import SPLITS
from xfeat.featurize.specs import FeatureSpec
from xfeat.featurize.system.atomic import replacing
from xfeat.featurize.system.versions import library_versions

_SKIPPED = np.dtype([("path", TEXT), ("reason", TEXT)])


@dataclass(frozen=True, kw_only=True)
class CacheDescription:
    """The content of a cache besides its features.

    Attributes:
        spec: what a row of features is.
        class_names: sorted names; labels are indices into it.
        data_root: the folder that paths are relative to.
        weights_path: the weights file that was used.
        columns: one value per row each.
        skipped: images that could not be read.
        layout: how the folders of the data set were read.
        left_out: files that are not images of the data set, counted by reason.
    """

    spec: FeatureSpec
    class_names: Sequence[str]
    data_root: str
    weights_path: str
    columns: Columns
    skipped: Sequence[Skipped]
    layout: str = ""
    left_out: dict[str, Any] = field(default_factory=dict)


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
        for key, value in _attributes(description, finish_digest(digest, columns)).items():
            if isinstance(value, str):
                file.attrs.create(key, to_bytes(value), dtype=TEXT)
            else:
                file.attrs[key] = value


def _attributes(description: CacheDescription, content_sha256: str) -> dict[str, str | int]:
    columns = description.columns
    return {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "spec": json.dumps(description.spec.to_dict()),
        "fingerprint": description.spec.fingerprint,
        "class_names": json.dumps(list(description.class_names)),
        "split_names": json.dumps(SPLITS),
        "counts": json.dumps(count_images(columns.split, columns.label, description.class_names)),
        "data_root": description.data_root,
        "weights_path": description.weights_path,
        "layout": description.layout,
        "left_out": json.dumps(description.left_out),
        "content_sha256": content_sha256,
        "columns_sha256": digest_of_states(columns, description.skipped),
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
