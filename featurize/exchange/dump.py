"""Writes a cache as a table that other programs read, and that :mod:`xfeat.featurize.exchange.load` reads back."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.datasets.file_lookup import name_as_text
from xfeat.featurize.datasets.layouts import NO_LABEL, NO_SPLIT, SPLITS
from xfeat.featurize.exchange.table_columns import feature_number
from xfeat.featurize.exchange.table_files import (
    NOTE,
    SCHEMA_VERSION,
    Note,
    NotedColumn,
    check_suffix,
    rows_at_once,
    write_table,
)
from xfeat.featurize.sources.parquet_table import arrow

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

FEATURES = "features"


def dump_cache(cache: FeatureCache, target: Path) -> list[str]:
    """Write a cache as a table: one row per image, in the order of the cache.

    Args:
        cache: the features.
        target: ``.parquet`` and ``.npz`` get one column ``features`` of D numbers (V × D with views, one view after the
            other), ``.csv`` the columns ``f0``, ``f1``, …

    Returns:
        The names of the columns, without those of the features.

    Raises:
        CacheError: if the features cannot be read.
        OutputError: if ``target`` cannot be written.
        SpecError: if its name says no kind of table.
        MissingExtraError: if pyarrow is not installed.
    """
    check_suffix(target)
    columns, described = _columns(cache)
    note = _note_of(cache, described)
    schema = _schema(columns, cache, as_list=target.suffix.lower() != ".csv")
    write_table(target, schema, _blocks(cache, columns, schema), note)
    return list(columns)


def _read_blocks(cache: FeatureCache, order: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield the features of the rows in an order: the place of the first one of a block, and the block."""
    step = rows_at_once(int(np.prod(cache.features.shape[1:])))
    for first in range(0, len(order), step):
        yield first, cache.file.read(order[first : first + step], None)


def _note_of(cache: FeatureCache, described: dict[str, NotedColumn]) -> Note:
    digest = hashlib.sha256()
    by_path = np.array(sorted(range(len(cache)), key=cache.columns.path.__getitem__), np.int64)
    for _, block in _read_blocks(cache, by_path):
        digest.update(block.data)
    return Note(
        format=NOTE,
        schema_version=SCHEMA_VERSION,
        spec=cache.spec.to_dict(),
        class_names=list(cache.class_names),
        data_root=cache.data_root,
        weights_path=cache.weights_path,
        layout=cache.layout,
        left_out=cache.left_out,
        skipped=[(row.path, row.reason) for row in cache.skipped],
        corrections=[(row.path, row.action, row.value, row.reason) for row in cache.corrections],
        features_sha256=digest.hexdigest(),
        columns=described,
    )


def _columns(cache: FeatureCache) -> tuple[dict[str, Any], dict[str, NotedColumn]]:
    """Return the values of each column, and of the further ones what they are."""
    own = cache.columns
    paths = list(map(name_as_text, own.path))
    if paths != list(own.path):
        logger.warning("some paths are not UTF-8: the table has them as Latin-1, and does not lead to these images")
    columns: dict[str, Any] = {
        "path": paths,
        "label": ["" if code == NO_LABEL else cache.class_names[code] for code in own.label.tolist()],
        "split": ["" if code == NO_SPLIT else SPLITS[code] for code in own.split.tolist()],
        "group": list(map(name_as_text, own.group)),
        "sha256": list(own.sha256),
        "size": own.size,
        "truncated": own.truncated,
    }
    described: dict[str, NotedColumn] = {}
    for name, column in cache.extra.items():
        written = _free_name(name, columns)
        described[name] = {"kind": column.kind, "names": list(column.names), "source": column.source, "column": written}
        if column.kind == "labels":
            columns |= {f"{written}/{each}": column.values[:, at] for at, each in enumerate(column.names)}
        else:
            columns[written] = column.values if column.kind == "number" else column.texts()
    return columns, described


def _free_name(name: str, taken: dict[str, Any]) -> str:
    """Return a name that is no column yet, nor read as one of the features."""
    while name in taken or name == FEATURES or feature_number(name) is not None:
        name += "_"
    return name


def _schema(columns: dict[str, Any], cache: FeatureCache, *, as_list: bool) -> pa.Schema:
    pa = arrow()
    width = int(np.prod(cache.features.shape[1:]))
    fields = [
        (name, pa.from_numpy_dtype(values.dtype) if isinstance(values, np.ndarray) else pa.string())
        for name, values in columns.items()
    ]
    if as_list:
        fields.append((FEATURES, pa.list_(pa.from_numpy_dtype(cache.features.dtype), width)))
    else:
        # A CSV file has no float16: every one of them is a float32.
        fields += [(f"f{at}", pa.float32()) for at in range(width)]
    return pa.schema(fields, metadata={"rows": str(len(cache))})


def _blocks(cache: FeatureCache, columns: dict[str, Any], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    pa = arrow()
    for first, block in _read_blocks(cache, np.arange(len(cache))):
        rows = block.reshape(len(block), -1)
        arrays = [pa.array(values[first : first + len(rows)]) for values in columns.values()]
        if schema.names[-1] == FEATURES:
            arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1]))
        else:
            arrays += [pa.array(values) for values in np.ascontiguousarray(rows.astype(np.float32).T)]
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)
