"""From the cells of a table to the columns of a cache: paths, labels, splits, and what else there is."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.cache.extra import ExtraColumn
from xfeat.featurize.columns.kinds import typed_column
from xfeat.featurize.datasets.file_lookup import written_path
from xfeat.featurize.datasets.layouts import MAX_NAME_BYTES, NO_LABEL, SPLIT_CODES
from xfeat.featurize.datasets.structure import splits_of
from xfeat.featurize.datasets.tables import NO_VALUE
from xfeat.featurize.exchange.table_columns import TableColumns
from xfeat.featurize.exchange.table_files import NotedColumn, TableFile
from xfeat.featurize.exchange.table_rows import Cells, as_text, refused_rows
from xfeat.featurize.text import listed, quote
from xfeat.featurize.urls import Root, is_url

logger = logging.getLogger(__name__)

_WHOLE = re.compile(r"-?\d+\.0+")


def cell_texts(values: Sequence[Any]) -> list[str]:
    """Return labels or groups as text, empty for what is missing; whole numbers lose the ``.0`` of pandas."""
    texts = [as_text(value) for value in values]
    distinct = {text: "" if text.casefold() in NO_VALUE else text for text in set(texts)}
    if all(_WHOLE.fullmatch(text) for text in distinct.values() if text):
        distinct = {text: kept.partition(".")[0] for text, kept in distinct.items()}
    return [distinct[text] for text in texts]


def path_names(table: TableFile, cells: Sequence[Any] | None, count: int, data: Root | None) -> tuple[Root, list[str]]:
    """Return the folder of the images, and the path of each row relative to it; numbers where there are no paths.

    Raises:
        DataError: if a path is missing, too long, or stands twice.
    """
    folder = data or table.path.absolute().parent
    if cells is None:
        logger.info("%s: it has no paths; its rows are numbered", table.path)
        return folder, [f"row {number:07d}" for number in range(1, count + 1)]
    paths = [as_text(cell) for cell in cells]
    _refuse(table, "without a path", [at for at, path in enumerate(paths) if not path], paths)
    wrong = [at for at, path in enumerate(paths) if "\0" in path or len(path.encode()) > MAX_NAME_BYTES]
    _refuse(table, f"with a path over {MAX_NAME_BYTES:,} bytes, or with NUL", wrong, paths)
    paths = [path if is_url(path) else written_path(path) for path in paths]
    if all(map(os.path.isabs, paths)):
        folder = data or Path(os.path.commonpath([os.path.dirname(path) for path in paths]))
        paths = [os.path.relpath(path, str(folder)).replace(os.sep, "/") for path in paths]
    if len(set(paths)) < len(paths):
        times = Counter(paths)
        _refuse(table, "whose path stands there twice", [at for at, path in enumerate(paths) if times[path] > 1], paths)
    return folder, paths


def label_codes(cells: Sequence[Any], class_names: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """Return the class names, and int32 (N,) their indices.

    Args:
        cells: the label of each row.
        class_names: in their order, if they are known.
    """
    texts = cell_texts(cells)
    found = sorted(set(texts) - {""})
    names = tuple(class_names) if set(found) <= set(class_names) else tuple(found)
    if without := texts.count(""):
        logger.warning("rows without a label: %d of %d", without, len(texts))
    code = {"": NO_LABEL, **{name: number for number, name in enumerate(names)}}
    return names, np.array([code[text] for text in texts], np.int32)


def split_codes(table: TableFile, header: str, cells: Sequence[Any]) -> NDArray[np.uint8]:
    """Return uint8 (N,), the split of each row.

    Raises:
        DataError: if a value names no split.
    """
    texts = cell_texts(cells)
    splits, unknown = splits_of(table.path, header, texts)
    _refuse(table, "with an unknown split (use train, valid or test)", unknown, texts)
    return np.array([SPLIT_CODES[split] for split in splits], np.uint8)


def extra_columns(
    table: TableFile, columns: TableColumns, cells: Cells, order: NDArray[np.int64]
) -> dict[str, ExtraColumn]:
    """Return the further columns, in the order of the cache: as a dump describes them, else as their texts are."""
    found: dict[str, ExtraColumn] = {}
    rows, waiting = order.tolist(), dict(columns.extra)
    for name, about in (table.note["columns"] if table.note else {}).items():
        several = about["names"] if about["kind"] == "labels" else []
        written = [f"{about['column']}/{each}" for each in several] or [about["column"]]
        if all(column in cells for column in written):
            with suppress(KeyError, ValueError, TypeError):  # edited: the texts say what they are now
                found[name] = _restored(about, [[cells[column][at] for at in rows] for column in written])
                waiting = {column: new for column, new in waiting.items() if column not in written}
    for column, name in waiting.items():
        texts = [as_text(cells[column][at]) for at in rows]
        typed = typed_column(name, texts, source=table.path.name)
        for note in typed.notes:
            logger.info("%s: column %s: %s", table.path, name, note)
        if typed.column is not None:
            found[name] = typed.column
    return found


def _restored(about: NotedColumn, values: list[list[Any]]) -> ExtraColumn:
    """Return a column as it was dumped."""
    kind, names = about["kind"], tuple(about["names"])
    one = values[0] if values else []
    array: NDArray[Any]
    if kind == "number":
        array = np.array(one, np.float64)  # None is NaN
    elif kind == "category":
        codes = {"": -1, **{name: number for number, name in enumerate(names)}}
        array = np.array([codes[value or ""] for value in one], np.int32)
    elif kind == "date":
        array = np.array([value or "NaT" for value in one], "datetime64[D]")
    elif kind == "labels":
        array = np.array(values, np.int8).T
    else:
        array = np.array([(value or "").encode("utf-8") for value in one], "S")
    return ExtraColumn(kind, array, names, about.get("source", ""))


def _refuse(table: TableFile, what: str, rows: list[int], texts: Sequence[str]) -> None:
    if rows:
        raise refused_rows(table, what, rows, listed(map(quote, dict.fromkeys(texts[row] for row in rows[:5]))))
