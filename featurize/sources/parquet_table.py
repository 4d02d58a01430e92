"""Images in a parquet table, as Hugging Face's datasets write them: a column of bytes, others with labels."""

from __future__ import annotations

import posixpath
import threading
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from xfeat.featurize.errors import DataError, ImageError, MissingExtraError
from xfeat.featurize.sources.container_file import ContainerFile
from xfeat.featurize.sources.image_source import (
    MAX_NAME,
    MAX_RATIO,
    MOST_IN_A_ROW,
    READ_LIMIT_S,
    SMALL_BYTES,
    FileState,
    ImageSource,
    Records,
    check_size,
    safe_name,
    translating,
)
from xfeat.featurize.system.time_limit import limited
from xfeat.featurize.text import listed, quote
from xfeat.featurize.typed_json import parse_json
from xfeat.featurize.urls import is_url

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_IMAGE_NAMES = ("image", "img", "picture", "photo", "bytes", "content", "jpg", "jpeg", "png")
# Rows that were read last: threads ask for them in nearly the order in which they are stored.
_WINDOW_ROWS, _WINDOW_BYTES = 64, 64 << 20
_PARTS = ("bytes", "path")  # of an image
_DIGITS = 7
_UNPACK = "write the table with one image per row: image (bytes), label"


def arrow() -> Any:
    """Return pyarrow.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise MissingExtraError("pyarrow is not installed", fix="pip install 'xfeat-onnx[tables]'") from error
    return pyarrow


def open_parquet(file: Path | BinaryIO) -> pq.ParquetFile:
    """Open a parquet table that may be damaged."""
    import pyarrow.parquet as pq

    # Source: defaults of parquet-cpp are 100 MB and 1,000,000; a damaged file could ask for as much.
    limits = {"thrift_string_size_limit": 64 << 20, "thrift_container_size_limit": 1_000_000}
    return pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20, **limits)


class ParquetSource(ImageSource):
    """Rows of a parquet table, one image each.

    Args:
        file: the table.
        beside: what lies in its folder, for rows that only name a file.

    Raises:
        DataError: if it cannot be read, has no column of images or several, or inflates to many times its size.
        MissingExtraError: if pyarrow is not installed.
    """

    all_images = True
    _not_pickled = ("_table", "_rows")

    def __init__(self, file: ContainerFile, beside: ImageSource | None = None) -> None:
        self.doubts: list[str] = []
        self._file, self._beside = file, beside
        with _reading(file):
            self._column, self._is_struct = _image_column(file, self._table)
            _refuse_bombs(file, self._table)
        self._row_of = {name: row for row, name in enumerate(self._names())}

    def names(self) -> Iterator[str]:
        """Yield a name per row: its path if all have one of their own, else its number."""
        yield from self._row_of

    def records(self) -> Records:
        """Return the other columns as text, and numbers of classes by their names."""
        schema = self._table.schema_arrow
        class_names = _class_names(schema.metadata or {})
        columns = {}
        parts = schema.field(self._column).type if self._is_struct else ()
        not_kept = [f"{self._column}.{part.name}" for part in parts if part.name not in _PARTS]
        for field in schema:
            if field.name == self._column:
                continue
            if _is_scalar(field.type) or _is_labels(field, class_names):
                columns[field.name] = self._texts(field.name, class_names.get(field.name, []))
            else:
                not_kept.append(field.name)
        if not_kept:
            self.doubts.append(f"not kept: {listed(map(quote, not_kept))} (nested columns, or further images)")
        return Records(list(self._row_of), columns, next((name for name in class_names if name in columns), ""))

    def _texts(self, column: str, class_names: list[str]) -> list[str]:
        """Return a column as text; refuse rows with several labels, and numbers of classes that have no name."""
        with _reading(self._file):
            values = self._table.read(columns=[column], use_threads=False).column(0).to_pylist()
        for row, value in enumerate(values):
            if isinstance(value, list):
                if len(value) > 1:
                    raise DataError(
                        f"column {quote(column)} has several labels per row",
                        path=self._file.path,
                        expected="one label per image",
                        found=quote(str(value)),
                        fix="write a table with one label per row",
                    )
                value = values[row] = value[0] if value else None
            is_number = isinstance(value, int | float) and value == value  # not NaN
            if class_names and is_number and (value >= len(class_names) or value % 1):
                raise DataError(
                    f"column {quote(column)} has the number of a class without a name",
                    path=self._file.path,
                    expected=f"0 to {len(class_names) - 1}: {listed(map(quote, class_names))}",
                    found=f"{value} in row {row}",
                    fix="write the table with the names of all classes, or with names in place of numbers",
                )
        return [_text(value, class_names) for value in values]

    def state(self, path: str) -> FileState | None:
        """Return the state of a row: that of the table with the row's place, ``None`` if it does not exist."""
        row = self._row_of.get(path)
        return None if row is None else self._file.state("row", row)

    def read(self, path: str) -> tuple[bytes, FileState]:
        """Return the bytes in a row, and its state.

        Raises:
            ImageError: if it has none, or cannot be read.
        """
        row = self._row_of.get(path)
        if row is None:
            raise ImageError("cannot be read: no such row in the table")
        data, name = self._row(row)
        if data is None:
            data = self._outside(name)
        check_size(len(data))
        return data, self._file.state("row", row)

    def _start(self, path: str, size: int) -> bytes:
        return self.read(path)[0][:size]

    def order(self, path: str) -> tuple[str, int]:
        """Return the number of a row."""
        return "", self._row_of.get(path, 0)

    @cached_property
    def _table(self) -> pq.ParquetFile:
        arrow()
        return open_parquet(self._file.open_for(self))

    @cached_property
    def _rows(self) -> _RowReader:
        return _RowReader(self._table, self._column, is_struct=self._is_struct)

    @limited(READ_LIMIT_S, "read", most_in_a_row=MOST_IN_A_ROW)
    def _row(self, row: int) -> tuple[bytes | None, str]:
        with translating("cannot be read from the table", Exception):
            return self._rows.read(row)

    def _outside(self, name: str) -> bytes:
        """Return the content of the file that a row without bytes names: only one below the folder of the table."""
        if not name:
            raise ImageError("no image in this row")
        path = name.replace("\\", "/")
        parts = path.split("/")
        if is_url(name) or posixpath.isabs(name) or ".." in parts or ":" in parts[0] or self._beside is None:
            raise ImageError(f"the row has no image, only a path outside of the table's folder: {quote(name)}")
        return self._beside.read(safe_name(path))[0]

    def _names(self) -> list[str]:
        count = self._table.metadata.num_rows
        cells: list[dict[str, str] | None] = []
        if self._is_struct:
            with _reading(self._file):
                found = self._table.read(columns=[f"{self._column}.path"], use_threads=False)
                cells = found.column(0).to_pylist() if found.num_columns else []
        names = [safe_name(((cell or {}).get("path") or "").replace("\\", "/")) for cell in cells]
        if len(set(names)) == count and all(0 < len(name) <= MAX_NAME and "\0" not in name for name in names):
            return names
        suffixes = [posixpath.splitext(name)[1][:10] for name in names] or [""] * count
        return [f"{row:0{_DIGITS}d}{suffix}" for row, suffix in enumerate(suffixes)]


class _RowReader:
    """Reads one row after another: memory holds the rows that were read last, and one page of the file."""

    def __init__(self, table: pq.ParquetFile, column: str, *, is_struct: bool) -> None:
        self._table, self._columns, self._is_struct = table, [column], is_struct
        self._lock = threading.Lock()
        self._batches: Iterator[Any] = iter(())
        self._next, self._group = 0, -1
        self._window: deque[tuple[int, Any, int]] = deque(maxlen=_WINDOW_ROWS)  # number, value and bytes of a row
        counts = (table.metadata.row_group(group).num_rows for group in range(table.metadata.num_row_groups))
        self._firsts = list(accumulate(counts, initial=0))

    def read(self, row: int) -> tuple[bytes | None, str]:
        """Return the bytes in a row, and the path beside them."""
        with self._lock:
            found = next((value for number, value, _ in self._window if number == row), None)
            found = self._advance(row) if found is None else found
        if not self._is_struct:
            return found.as_py(), ""
        values = found.as_py() or {}
        return values.get("bytes"), values.get("path") or ""

    def _advance(self, row: int) -> Any:
        group = bisect_right(self._firsts, row) - 1
        if group != self._group or row < self._next:
            # One row at a time: a page of one repeated image would become as many as there are rows.
            self._batches = self._table.iter_batches(
                batch_size=1, row_groups=[group], columns=self._columns, use_threads=False
            )
            self._group, self._next = group, self._firsts[group]
        for batch in self._batches:
            array = batch.column(0)
            self._window.append((self._next, array[0], array.nbytes))
            while len(self._window) > 1 and sum(size for *_, size in self._window) > _WINDOW_BYTES:
                self._window.popleft()
            self._next += 1
            if self._next > row:
                return array[0]
        raise ImageError("the table has fewer rows than it says")


def _reading(file: ContainerFile) -> AbstractContextManager[None]:
    """Translate what is raised of a damaged table: pyarrow has errors of its own, and passes on those of the file."""
    what, fix = "the parquet table cannot be read", "download or write it again"
    return translating(what, Exception, path=file.path, fix=fix)


def _image_column(file: ContainerFile, table: pq.ParquetFile) -> tuple[str, bool]:
    """Return the column of images, and whether it has a path beside the bytes."""
    import pyarrow as pa

    schema = table.schema_arrow
    if again := [name for name, count in Counter(schema.names).items() if count > 1]:
        fix = "write the table again, with a name of its own for each column"
        raise DataError("several columns have one name", path=file.path, found=listed(map(quote, again)), fix=fix)
    found: dict[str, bool] = {}
    for field in schema:
        kind = field.type
        if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            if _is_struct(kind.value_type) or _is_binary(kind.value_type):
                what = f"column {quote(field.name)} has several images per row"
                raise DataError(what, path=file.path, expected="one image per row", found=str(kind), fix=_UNPACK)
        elif (is_struct := _is_struct(kind)) or _is_binary(kind):
            found[field.name] = is_struct
    chosen = [name for name, is_struct in found.items() if is_struct] or list(found)
    if len(chosen) > 1:
        chosen = [name for name in _IMAGE_NAMES if name in chosen][:1] or chosen
    if len(chosen) != 1:
        raise DataError(
            "several columns could be the images" if chosen else "no column has images",
            path=file.path,
            expected="image (bytes and path) or a column of bytes; of features, xfeat load makes a cache",
            found=listed(f"{quote(field.name)} {quote(field.type)}" for field in schema) or "no columns",
            fix=_UNPACK,
        )
    return chosen[0], found[chosen[0]]


def _refuse_bombs(file: ContainerFile, table: pq.ParquetFile) -> None:
    """Refuse a table of which a column inflates to many times its size."""
    for group in range(table.metadata.num_row_groups):
        row_group = table.metadata.row_group(group)
        for at in range(row_group.num_columns):
            column = row_group.column(at)
            inflated, stored = column.total_uncompressed_size, max(1, column.total_compressed_size)
            if inflated > SMALL_BYTES and inflated > MAX_RATIO * stored:
                raise DataError(
                    f"column {quote(column.path_in_schema)} inflates to {inflated >> 20} MB",
                    path=file.path,
                    expected=f"at most {MAX_RATIO} times its size in the file",
                    found=f"{inflated // stored} times",
                    fix="write the table again, with images that are not compressed twice",
                )


def _is_struct(kind: Any) -> bool:
    """Tell whether a type has bytes, and perhaps a path beside them."""
    import pyarrow as pa

    return bool(pa.types.is_struct(kind)) and kind.get_field_index("bytes") >= 0


def _is_binary(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_scalar(kind: Any) -> bool:
    import pyarrow as pa

    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    return not (pa.types.is_nested(inner) or _is_binary(inner))


def _is_labels(field: Any, class_names: dict[str, list[str]]) -> bool:
    """Say whether a column has lists of labels: lists of one are read."""
    import pyarrow as pa

    is_list = pa.types.is_list(field.type) or pa.types.is_large_list(field.type)
    named = field.name in class_names or field.name.lower() in ("label", "labels")
    return bool(is_list and named and _is_scalar(field.type.value_type))


def _class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Return the names of the classes of each column, from the schema's metadata.

    Source: ``Features.arrow_schema`` of Hugging Face's datasets.
    """
    try:
        features = parse_json(metadata[b"huggingface"])["info"]["features"]
        features = {name: _element(about) for name, about in features.items()}
        return {
            name: [str(each) for each in about["names"]]
            for name, about in features.items()
            if isinstance(about, dict) and about.get("_type") == "ClassLabel" and isinstance(about.get("names"), list)
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _element(about: Any) -> Any:
    """Return what a list of Hugging Face's datasets is made of: ``[x]``, or ``{"feature": x, "_type": "List"}``."""
    if isinstance(about, list) and about:
        return about[0]
    return about.get("feature", about) if isinstance(about, dict) else about


def _text(value: Any, class_names: list[str]) -> str:
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if class_names and isinstance(value, int):  # -1 stands for no label
        return class_names[value] if value >= 0 else ""
    return str(value).lower() if isinstance(value, bool) else str(value)
