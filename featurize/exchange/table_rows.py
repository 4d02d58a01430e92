"""Reads the rows of a table of features: numbers to the disk, cells as text. What cannot be right is refused."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.cache.reader import finite_rows
from xfeat.featurize.errors import DataError
from xfeat.featurize.exchange.staging import StagedRows
from xfeat.featurize.exchange.table_columns import TableColumns
from xfeat.featurize.exchange.table_files import TableFile, reading
from xfeat.featurize.sources.parquet_table import arrow
from xfeat.featurize.text import count_of, quote

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

MOST_FEATURES = 1 << 17
_NAMED = 5

Cells = dict[str, list[Any]]
"""The values of each column that is no feature, by its name in the file."""


def read_rows(table: TableFile, columns: TableColumns, rows: StagedRows) -> Cells:
    """Read all rows of a table: the features into ``rows``, the others into memory.

    Raises:
        DataError: if there are none, or one has features that cannot be right.
    """
    kinds = dict.fromkeys(columns.features, "feature")
    cells: Cells = {name: [] for name in (*columns.roles.values(), *columns.extra, *columns.own)}
    kinds |= dict.fromkeys(cells, "text")
    for about in (table.note["columns"] if table.note else {}).values():
        if about["kind"] == "number" and about["column"] in kinds:
            kinds[about["column"]] = "number"
    with reading(table.path):
        for block in table.blocks(kinds):
            if block.num_rows:
                rows.append(_features(table, block, columns.features, rows))
                for name, values in cells.items():
                    values += block.column(name).to_pylist()
    if not len(rows):
        fix = "check how it was written"
        raise DataError("the table has no rows", path=table.path, expected="one row per image", fix=fix)
    return cells


def refused_rows(table: TableFile, what: str, rows: Sequence[int], found: str = "") -> DataError:
    """Return the error for rows that cannot be right; rows are counted from 1, without the header."""
    named = ", ".join(f"row {row + 1}" for row in rows[:_NAMED])
    named += f" and {len(rows) - _NAMED} more" * (len(rows) > _NAMED)
    found = f"{named}: {found}" if found else named
    what = f"{count_of(len(rows), 'row')} {what}"
    return DataError(what, path=table.path, found=found, fix="correct or remove these rows")


def as_text(value: Any) -> str:
    """Return a cell as text: whole numbers without a point, nothing for what is missing."""
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value).strip()


def _features(table: TableFile, block: pa.RecordBatch, names: Sequence[str], before: StagedRows) -> NDArray[Any]:
    """Return the features of a block, (n, D), float32 or float16."""
    pa = arrow()
    arrays = [block.column(name) for name in names]
    if is_list := names[0] in table.lists:
        arrays = [_flat(table, arrays[0], before)]
    for name, array in zip(names, arrays, strict=True):
        if not (pa.types.is_floating(array.type) or pa.types.is_integer(array.type)):
            raise DataError(
                f"the features in {quote(name)} are no numbers",
                path=table.path,
                expected="float16, float32, float64 or integers",
                found=str(array.type),
                fix="convert the column, or rename it if it holds no feature",
            )
        if array.null_count:
            at = _nulls(array) // (len(array) // block.num_rows)
            raise refused_rows(table, f"without a number in {name}", (len(before) + np.unique(at)).tolist())
    parts = [array.to_numpy(zero_copy_only=False) for array in arrays]
    found = parts[0].reshape(block.num_rows, -1) if is_list else np.stack(parts, axis=1)
    if found.dtype == np.float64 and not len(before):
        logger.info("%s: float64 is rounded to float32", table.path)
    if table.note is not None and table.note["spec"]["dtype"] == "float16":  # a CSV file has no such type
        found = found.astype(np.float16)
    if found.dtype != np.float16:
        with np.errstate(over="ignore"):
            found = found.astype(np.float32)
    if len(bad := np.flatnonzero(~finite_rows(found))):
        raise refused_rows(table, "with features that are not finite, or too large", (len(before) + bad).tolist())
    if not 1 <= found.shape[1] <= MOST_FEATURES:
        expected, fix = f"1 to {MOST_FEATURES} numbers per row", "check the column of the features"
        number = str(found.shape[1])
        raise DataError("so many features are not possible", path=table.path, expected=expected, found=number, fix=fix)
    return found


def _nulls(array: pa.Array) -> NDArray[np.int64]:
    return np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))


def _flat(table: TableFile, array: pa.Array, before: StagedRows) -> pa.Array:
    """Return the numbers of a column of lists, all of them of one length."""
    pa = arrow()
    if array.null_count:
        raise refused_rows(table, "without features", (len(before) + _nulls(array)).tolist())
    if pa.types.is_fixed_size_list(array.type):
        return array.flatten()
    lengths = array.value_lengths().to_numpy()
    wanted = before.width or int(lengths[0])
    if len(other := np.flatnonzero(lengths != wanted)):
        what = f"with another number of features than {wanted}"
        raise refused_rows(table, what, (len(before) + other).tolist(), f"{int(lengths[other[0]])}")
    return array.flatten()
