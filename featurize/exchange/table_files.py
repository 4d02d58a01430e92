"""Tables of features in parquet, npz and CSV files, read and written a block of rows at a time."""

from __future__ import annotations

import csv
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypedDict

import numpy as np

from xfeat.featurize.cache.layout import LeftOut, parse_object
from xfeat.featurize.errors import DataError, SpecError
from xfeat.featurize.sources.image_source import translating
from xfeat.featurize.sources.parquet_table import arrow, open_parquet
from xfeat.featurize.system.atomic import replacing
from xfeat.featurize.system.regular_files import open_regular
from xfeat.featurize.text import printable, quote

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".parquet", ".npz", ".csv")
NOTE = "xfeat.dump"
"""Name of what a dump says of itself: metadata of a parquet file, an array of an npz file."""
SCHEMA_VERSION = 1
_ROWS, _BLOCK_NUMBERS = 4096, 4 << 20
_USUAL_WIDTH = 8192  # of lists whose length the schema does not say
_CSV_BLOCK_BYTES = 8 << 20
_CHECK = "check the file, and write it again"


class Note(TypedDict):
    """What a dump says of itself; docs/formats.md describes the keys."""

    format: str
    schema_version: int
    spec: dict[str, Any]
    class_names: list[str]
    data_root: str
    weights_path: str
    layout: str
    left_out: dict[str, LeftOut]
    skipped: list[tuple[str, str]]
    corrections: list[tuple[str, str, str, str]]
    features_sha256: str
    columns: dict[str, NotedColumn]


class NotedColumn(TypedDict):
    """A further column: what it is in a cache, and its name in the table."""

    kind: str
    names: list[str]
    source: str
    column: str


@dataclass(frozen=True)
class TableFile:
    """An opened table of features.

    Attributes:
        path: the file.
        names: of the columns.
        lists: names of the columns that hold a list of numbers in each row.
        note: what a dump says of itself; ``None`` in other tables.
        blocks: yields the rows, a block at a time, given the columns to read, and what they are in a CSV file:
            ``feature`` (float32), ``number`` (float64) or ``text``.
    """

    path: Path
    names: list[str]
    lists: list[str]
    note: Note | None
    blocks: Callable[[dict[str, str]], Iterator[pa.RecordBatch]]


def check_suffix(path: Path) -> str:
    """Return the kind of table that a name says.

    Raises:
        SpecError: if it says none.
    """
    if (suffix := path.suffix.lower()) not in SUFFIXES:
        raise SpecError("unknown kind of table", expected="a name that ends in " + ", ".join(SUFFIXES), found=str(path))
    return suffix


def open_table(path: Path) -> TableFile:
    """Open a table of features.

    Raises:
        DataError: if it cannot be read.
        SpecError: if its name says no kind of table.
        MissingExtraError: if pyarrow is not installed.
    """
    suffix = check_suffix(path)
    arrow()
    with reading(path):
        open_regular(path).close()
        return {".parquet": _open_parquet, ".npz": _open_npz, ".csv": _open_csv}[suffix](path)


def write_table(path: Path, schema: pa.Schema, blocks: Iterable[pa.RecordBatch], note: Note) -> None:
    """Write a table, whole or not at all.

    Args:
        path: the file; its suffix says its kind.
        schema: of the columns.
        blocks: of rows.
        note: what it says of itself. Of ``x.csv``, it is in ``x.csv.json``.

    Raises:
        OutputError: if it cannot be written.
    """
    suffix, text = check_suffix(path), json.dumps(note)
    with replacing(path) as partial:
        {".parquet": _write_parquet, ".npz": _write_npz, ".csv": _write_csv}[suffix](partial, schema, blocks, text)
    if suffix == ".csv":
        with replacing(Path(f"{path}.json")) as partial:
            partial.write_text(text + "\n", encoding="utf-8")


def reading(path: Path) -> AbstractContextManager[None]:
    """Translate what libraries raise while a table is read.

    Raises:
        DataError: for each of them.
    """
    kinds = OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error
    return translating("the table cannot be read", arrow().ArrowException, *kinds, path=path, fix=_CHECK)


def _parsed_note(path: Path, text: str | bytes | None) -> Note | None:
    if text is None:
        return None
    try:
        note: Note = parse_object(text.encode() if isinstance(text, str) else text, Note)
        if (note["format"], note["schema_version"]) != (NOTE, SCHEMA_VERSION):
            raise ValueError(f"{note['format']} version {note['schema_version']}")
    except ValueError as error:
        raise DataError(
            "what the dump says of itself is damaged, or of another version",
            path=path,
            expected=f"{NOTE} version {SCHEMA_VERSION}",
            found=printable(error)[:300],
            fix="dump the cache again, or remove what it says of itself",
        ) from error
    return note


# parquet


def _open_parquet(path: Path) -> TableFile:
    file = open_parquet(path)
    schema, types = file.schema_arrow, arrow().types
    widths = {
        field.name: field.type.list_size if types.is_fixed_size_list(field.type) else _USUAL_WIDTH
        for field in schema
        if types.is_list(field.type) or types.is_fixed_size_list(field.type) or types.is_large_list(field.type)
    }
    step = rows_at_once(max(widths.values(), default=len(schema.names)))
    note = _parsed_note(path, (schema.metadata or {}).get(NOTE.encode()))

    def blocks(kinds: dict[str, str]) -> Iterator[pa.RecordBatch]:
        yield from file.iter_batches(batch_size=step, columns=list(kinds), use_threads=False)

    return TableFile(path, list(schema.names), list(widths), note, blocks)


def rows_at_once(width: int) -> int:
    """Return how many rows of so many numbers are read or written at a time."""
    return max(1, min(_ROWS, _BLOCK_NUMBERS // max(1, width)))


def _write_parquet(path: Path, schema: pa.Schema, blocks: Iterable[pa.RecordBatch], note: str) -> None:
    import pyarrow.parquet as pq

    _write_all(pq.ParquetWriter(path, schema.with_metadata({NOTE: note}), compression="zstd"), blocks)


def _write_all(writer: Any, blocks: Iterable[pa.RecordBatch]) -> None:
    with writer:
        for block in blocks:
            writer.write_batch(block)


# CSV


def _open_csv(path: Path) -> TableFile:
    with open_regular(path) as file:
        start = file.read(_CSV_BLOCK_BYTES)
    encoding = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    text = start.decode(encoding, "replace").removeprefix("\ufeff")
    header, _, rest = text.partition("\n")
    delimiter = max(",;\t", key=header.count)
    names = next(csv.reader([header.rstrip("\r")], delimiter=delimiter), [])
    # A decimal comma is possible where it does not separate the columns.
    decimal = "," if delimiter != "," and rest.partition("\n")[0].count(",") else "."
    beside = Path(f"{path}.json")
    note = _parsed_note(path, beside.read_bytes() if beside.is_file() else None)

    def blocks(kinds: dict[str, str]) -> Iterator[pa.RecordBatch]:
        from pyarrow import csv as arrow_csv

        pa = arrow()
        types = {"feature": pa.float32(), "number": pa.float64(), "text": pa.string()}
        read = arrow_csv.ReadOptions(use_threads=False, encoding=encoding, block_size=_CSV_BLOCK_BYTES)
        parse = arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        # pyarrow finds a column by its name; two of one name are refused before.
        convert = arrow_csv.ConvertOptions(
            column_types={name: types[kind] for name, kind in kinds.items()},
            include_columns=list(kinds),
            decimal_point=decimal,
            null_values=["", "NA", "N/A", "null", "NULL", "None", "<NA>"],
            strings_can_be_null=False,
        )
        try:
            with arrow_csv.open_csv(path, read, parse, convert) as reader:
                yield from reader
        except pa.ArrowInvalid as error:
            raise _wrong_cell(path, names, str(error)) from error

    return TableFile(path, names, [], note, blocks)


def _wrong_cell(path: Path, names: list[str], text: str) -> DataError:
    """Return the error for a cell, by its column and row: pyarrow counts the header as a row."""
    found = re.search(r"column #(\d+)(?:: Row #(\d+))?.*?invalid value '(.*)'", text, re.DOTALL)
    if found is None:
        return DataError("the table cannot be read", path=path, found=printable(text)[:300], fix=_CHECK)
    row = f"row {int(found[2]) - 1}: " if found[2] else ""
    return DataError(
        f"{row}the cell in {quote(names[int(found[1])])} is no number",
        path=path,
        found=quote(found[3]),
        fix="correct the cell, or rename the column if it holds no feature",
    )


def _write_csv(path: Path, schema: pa.Schema, blocks: Iterable[pa.RecordBatch], note: str) -> None:
    from pyarrow import csv as arrow_csv

    options = arrow_csv.WriteOptions(quoting_style="needed")
    _write_all(arrow_csv.CSVWriter(str(path), schema, write_options=options), blocks)


# npz


def _open_npz(path: Path) -> TableFile:
    note, columns = None, {}
    with zipfile.ZipFile(path) as archive:
        for name in (file.removesuffix(".npy") for file in archive.namelist() if file.endswith(".npy")):
            with archive.open(f"{name}.npy") as member:
                if shape := _npy_header(path, name, member)[0]:
                    columns[name] = shape
                elif name == NOTE:
                    member.seek(0)
                    note = _parsed_note(path, str(np.lib.format.read_array(member, allow_pickle=False)))
    rows = {shape[0] for shape in columns.values()}
    if len(rows) > 1:
        found = ", ".join(f"{name} {shape}" for name, shape in columns.items())
        raise DataError("its arrays differ in length", path=path, expected="one row per image", found=quote(found))

    def blocks(kinds: dict[str, str]) -> Iterator[pa.RecordBatch]:
        pa = arrow()
        with zipfile.ZipFile(path) as archive:
            opened = {name: archive.open(f"{name}.npy") for name in kinds}
            types = {name: _npy_header(path, name, member)[1] for name, member in opened.items()}
            step = rows_at_once(max((int(np.prod(shape[1:])) for shape in columns.values()), default=1))
            for first in range(0, next(iter(rows), 0), step):
                arrays = {}
                for name, member in opened.items():
                    shape = (min(step, columns[name][0] - first), *columns[name][1:])
                    wanted = int(np.prod(shape)) * types[name].itemsize
                    if len(data := member.read(wanted)) < wanted:
                        raise EOFError(f"{name} ends before its last row")
                    arrays[name] = _as_arrow(np.frombuffer(data, types[name]).reshape(shape))
                yield pa.RecordBatch.from_pydict(arrays)

    return TableFile(path, list(columns), [name for name, shape in columns.items() if len(shape) > 1], note, blocks)


def _npy_header(path: Path, name: str, member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(member)
    if dtype.hasobject:
        raise DataError(
            f"the array {name} holds Python objects",
            path=path,
            expected="numbers or text",
            fix="convert it before it is saved: numpy.array(values, dtype=str)",
        )
    if fortran and len(shape) > 1:
        what, fix = f"the array {name} is stored by columns", "save numpy.ascontiguousarray(features)"
        raise DataError(what, path=path, expected="rows one after the other", fix=fix)
    return shape, dtype


def _as_arrow(values: np.ndarray[Any, Any]) -> Any:
    pa = arrow()
    if values.ndim > 1:
        flat = values.reshape(len(values), -1)
        return pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])
    if values.dtype.kind == "S":
        return pa.array([value.decode("utf-8", "surrogateescape") for value in values.tolist()], pa.string())
    return pa.array(values.tolist() if values.dtype.kind == "U" else values)


def _write_npz(path: Path, schema: pa.Schema, blocks: Iterable[pa.RecordBatch], note: str) -> None:
    """Write the arrays one after the other: the features as they come, the columns from memory."""
    *names, wide = schema.names  # the features come last
    columns: dict[str, Any] = {name: [] for name in names}
    kind = schema.field(wide).type
    shape = int(schema.metadata[b"rows"]), kind.list_size
    descr = np.lib.format.dtype_to_descr(np.dtype(kind.value_type.to_pandas_dtype()))
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        with archive.open(f"{wide}.npy", "w", force_zip64=True) as member:
            header = {"descr": descr, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_2_0(member, header)
            for block in blocks:
                member.write(np.ascontiguousarray(block.column(wide).flatten().to_numpy()).tobytes())
                for name in names:
                    columns[name] += block.column(name).to_pylist()
        for name, values in {**columns, NOTE: note}.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(values), allow_pickle=False)
