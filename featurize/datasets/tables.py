"""Reads tables (CSV, TSV, Excel) as spreadsheets and scripts write them: one reader, whatever the table is for."""

from __future__ import annotations

import codecs
import csv
import logging
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from xfeat.featurize.datasets.column_choice import AS_WRITTEN, ColumnChoice, find_name, further_names
from xfeat.featurize.datasets.workbook import is_workbook, workbook_rows
from xfeat.featurize.errors import DataError, ImageError
from xfeat.featurize.sources.folder import read_file
from xfeat.featurize.sources.image_source import MAX_FILE_BYTES, FileState
from xfeat.featurize.text import LONGEST_QUOTE, first_ten, listed, quote
from xfeat.featurize.urls import Root, Url

logger = logging.getLogger(__name__)

# Those that cannot be read are among them, so that they are refused as such, and not as archives without images.
TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".tab", ".txt", ".xlsx", ".xlsm", ".xls", ".ods", ".parquet"})
_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
# What each column may be called; upper and lower case, spaces, signs and a plural s do not count.
_ALIASES = {
    "path": "path file filename image_id image image_name image_path image_file image_filename image_file_path "
    "image_index file_path x_ray_image_name img img_id img_name img_path img_file name",
    "label": "label class target finding diagnosis category class_name class_label label_name finding_label dx "
    "categories",
    "split": "split set subset fold partition data_split dataset_type",
    "group": "group patient patient_id subject subject_id group_id",
}
# Taken only where there is no better one: most tables have an "id" that is something else.
_WEAK_ALIASES = {"path": "id id_code"}
# Source: the texts that pandas writes or reads as missing, without "None", which is a class of some scales.
NO_VALUE = frozenset({"nan", "null", "na", "n/a", "<na>", "#n/a", "#na"})
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it starts with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_OTHER_FILES = {
    b"PK\x03\x04": "a damaged Excel workbook, an OpenDocument workbook, or another zip archive",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "a gzip file",
}
_SAVE_AS_CSV = "save it as CSV with the encoding UTF-8"
_LINE_END = re.compile(r"\r\n|\r|\n")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
_CELL_END = re.compile(r"[,;\t|\r\n]")
# Of one row, over however many lines: so many of its longest values (csv.field_size_limit) fit.
_MAX_ROW_CHARACTERS = 1 << 20
_MAX_COLUMNS = 1 << 14  # as in spreadsheets
_TOO_LONG = {
    "field limit": f"a value is longer than {csv.field_size_limit() >> 10} KiB",
    "characters": "a row is longer than 1 MiB",
    "values": f"a row has more than {_MAX_COLUMNS} values",
}
# A row takes 240 bytes of memory, however short it is; so many images have longer names.
_MANY_ROWS, _MIN_ROW_CHARACTERS = 500_000, 12
_LINES_NAMED = 5


class TableRow(NamedTuple):
    """A row of a table: the line of the file that it starts in, counted from 1, and its values; empty means none.

    ``further`` are the values of the further columns, in their order.
    """

    line: int
    path: str = ""
    label: str = ""
    split: str = ""
    group: str = ""
    further: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """The columns of a table that were asked for.

    Attributes:
        path: the file, for messages.
        columns: what each column is for (path, label, split, group) to its name in the file.
        rows: those that are not blank; values are stripped, in composed letters, and empty if they mean "no value".
            Those of further columns are as they are written.
        header: all names in the file.
        further: what the other columns are called here.
    """

    path: Path
    columns: dict[str, str]
    rows: list[TableRow]
    header: list[str]
    further: list[str]


def read_table(
    path: Path,
    required: Sequence[str],
    optional: Sequence[str] = (),
    *,
    literal: Sequence[str] = (),
    choice: ColumnChoice = AS_WRITTEN,
    further: bool = True,
    content: bytes | None = None,
    said: set[str] | None = None,
) -> Table:
    """Read a table; its first line names the columns, and decides how they are separated.

    Args:
        path: the file.
        required: columns that must be there: ``path``, ``label``, ``split`` or ``group``, by any of their usual names.
        optional: columns that are read if they are there.
        literal: the same, of columns that are called exactly so.
        choice: what the user says of the columns.
        further: read the other columns, too.
        content: of a file that is elsewhere, such as in an archive.
        said: warnings that an earlier reading gave, which are not repeated; new ones are added.

    Raises:
        DataError: if it is no table, cannot be decoded, lacks a column, has two for one purpose, or a row is damaged.
    """
    said = set() if said is None else said
    if content is None:
        content = read_content(path, read_file)
    if is_workbook(content):
        records, separator, characters = workbook_rows(path, content), ";", MAX_FILE_BYTES
    else:
        records, separator, characters = _text_records(path, content, choice, said)
    header = [_plain(name) for name in next(records, (0, [""]))[1]]
    columns = choose_columns(path, header, required, optional, literal, choice)
    names, notes = further_names(header, columns, choice) if further else ({}, [])
    if notes:
        _warn_once(f"{path}: {'; '.join(first_ten(notes))}", said)
    rows: list[TableRow] = []
    seen: dict[str, str] = {}  # equal labels, splits and groups share their memory
    for line, cells in records:
        if [_plain(cell) for cell in cells] == header:  # tables that were put together repeat it
            continue
        if any(cell.strip() for cell in cells[len(header) :]):
            raise DataError(
                f"line {line} has {len(cells)} values for {len(header)} columns",
                path=path,
                expected=f"values separated by {_SEPARATORS.get(separator, separator)}, as in the first line",
                found=quote(separator.join(cells)),
                fix="put values that contain the separator in quotation marks, or name all columns in the first line, "
                "with no title above it",
            )
        values = {column: _value(path, line, cells, at, column) for column, at in columns.items()}
        found = [" ".join(_plain(cells[at]).splitlines()) if at < len(cells) else "" for at in names]
        others = tuple(seen.setdefault(value, value) for value in found)
        shared = {c: v if c == "path" else seen.setdefault(v, v) for c, v in values.items()}
        rows.append(TableRow(line, further=others, **shared))
        if len(rows) > max(_MANY_ROWS, characters // _MIN_ROW_CHARACTERS):
            raise DataError(
                f"more than {_MANY_ROWS} rows, of less than {_MIN_ROW_CHARACTERS} characters on average",
                path=path,
                expected="one row for each image",
                found=f"line {line}: {quote(separator.join(cells))}",
                fix="remove the rows that are repeated or name no image",
            )
    roles = {column: header[at] for column, at in columns.items()}
    left = [n for n, at in enumerate(names) if header[at] or not _says_nothing([row.further[n] for row in rows])]
    if len(left) < len(names):
        rows = [row._replace(further=tuple(row.further[n] for n in left)) for row in rows]
    return Table(path, roles, rows, header, [list(names.values())[n] for n in left])


def read_content(path: Root, read: Callable[[str], tuple[bytes, FileState]], name: str = "") -> bytes:
    """Return the content of a table.

    Args:
        path: of the table, for messages.
        read: returns the content of a file, and its state.
        name: that ``read`` takes, if it is not the path.

    Raises:
        DataError: if it cannot be read.
    """
    try:
        return read(name or str(path))[0]
    except ImageError as error:
        fix = "check the address" if isinstance(path, Url) else "check the path and its permissions"
        raise DataError(error.what, path=path, fix=fix) from error


def name_lines(rows: Sequence[tuple[int, str]]) -> str:
    """Return ``line 2: a.png, line 5: b.png and 14 more``."""
    shown = ", ".join(f"line {line}: {quote(text)}" for line, text in rows[:_LINES_NAMED])
    return shown + f" and {len(rows) - _LINES_NAMED} more" * (len(rows) > _LINES_NAMED)


def _warn_once(text: str, said: set[str]) -> None:
    if text not in said:
        logger.warning("%s", text)
        said.add(text)


# Bytes to text


def _decoded(path: Path, content: bytes, said: set[str]) -> str:
    for start, kind in _OTHER_FILES.items():
        if content.startswith(start):
            raise DataError("not a CSV file", path=path, found=kind, fix=_SAVE_AS_CSV)
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if content.startswith(mark)), "")
    if not encoding and b"\0" in content[:2]:  # the first letter of a header is ASCII, so this is UTF-16 without a mark
        encoding = "utf-16-be" if content[:1] == b"\0" else "utf-16-le"
    try:
        text = content.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        if encoding:
            what = f"damaged or cut short: not {encoding.upper()} as its first bytes say"
            found = f"{error.reason} at byte {error.start}"
            raise DataError(what, path=path, found=found, fix=_SAVE_AS_CSV) from error
        text = _decoded_as_latin_1(path, content, error.start, said)
    if "\0" in text:
        what = f"line {_line_at(text, text.index(chr(0)))} contains NUL bytes"
        raise DataError(what, path=path, found="a damaged or binary file", fix=_SAVE_AS_CSV)
    return text.rstrip("\x1a")  # the end of a file in DOS


def _decoded_as_latin_1(path: Path, content: bytes, first_bad: int, said: set[str]) -> str:
    """Decode a table that is not UTF-8, and say so. Windows means CP1252 by Latin-1, which has letters more."""
    line = _line_at(content[:first_bad].decode("latin-1"), first_bad)
    if other := _NOT_ASCII.search(content.decode("utf-8", "ignore")):
        what = f"line {line} is not UTF-8, but other letters are ({other[0]})"
        raise DataError(what, path=path, expected="one encoding for the whole file", fix=_SAVE_AS_CSV)
    try:
        text = content.decode("cp1252")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    at = next(_NOT_ASCII.finditer(text)).start()
    before, after = text[max(0, at - LONGEST_QUOTE) : at], text[at : at + LONGEST_QUOTE + 1]
    example = _CELL_END.split(before)[-1] + _CELL_END.split(after)[0]
    example = f"line {line}: {quote(example)} (if that is wrong, save it as UTF-8)"
    _warn_once(f"{path} is not UTF-8 and is read as Latin-1; {example}", said)
    return text


def _line_at(text: str, position: int) -> int:
    return sum(1 for _ in _LINE_END.finditer(text, 0, position)) + 1


# Text to rows


def _text_records(
    path: Path, content: bytes, choice: ColumnChoice, said: set[str]
) -> tuple[Iterator[tuple[int, list[str]]], str, int]:
    """Return the rows of a text file, what separates their cells, and the number of its characters."""
    text = _decoded(path, content, said)
    declared = re.match(r'"?sep=([^\w\s"]|\t)"?[ \t]*(\r\n|\r|\n|$)', text, re.IGNORECASE)  # Excel's own first line
    text = text[declared.end() :] if declared else text
    separator = declared[1] if declared else _separator(text, choice)
    return _records(path, text, separator, line=1 if declared else 0), separator, len(text)


def _separator(text: str, choice: ColumnChoice) -> str:
    """Return the separator with which the most columns of the header are known; of several, with the most columns."""

    def columns_of(separator: str) -> tuple[int, int]:
        try:
            _, header = next(_records(Path(), text, separator), (0, []))
        except DataError:  # quotation marks that only make sense with another separator
            return 0, 0
        chosen = sum(bool(find_name(name, header)) for name in choice.names.values())
        return sum(bool(_called(header, column)) for column in _ALIASES) + chosen, len(header)

    return max(_SEPARATORS, key=columns_of)


def _records(path: Path, text: str, separator: str, line: int = 0) -> Iterator[tuple[int, list[str]]]:
    """Yield the line and the cells of each row that is not blank; ``line`` lines were read before."""
    start, read = line + 1, 0

    def lines() -> Iterator[str]:
        nonlocal read
        at = 0
        while at < len(text):
            end = _LINE_END.search(text, at, at + _MAX_ROW_CHARACTERS)
            stop = end.end() if end else at + _MAX_ROW_CHARACTERS
            read += stop - at
            if read > _MAX_ROW_CHARACTERS:
                raise csv.Error(f"more than {_MAX_ROW_CHARACTERS >> 20} million characters")
            yield text[at:stop]
            at = stop

    reader = csv.reader(lines(), delimiter=separator, skipinitialspace=True, strict=True)
    try:
        for cells in reader:
            if len(cells) > _MAX_COLUMNS:
                raise csv.Error(f"{len(cells)} values")
            if any(cell.strip() for cell in cells):
                yield start, cells
            start, read = line + reader.line_num + 1, 0
    except csv.Error as error:
        what = next((what for word, what in _TOO_LONG.items() if word in str(error)), "wrong quotation marks")
        fix = "give each image one line; close a quotation mark that is open there, or write it twice inside a value"
        raise DataError(f"line {start}: {what}", path=path, found=str(error), fix=fix) from error


def _value(path: Path, line: int, cells: list[str], at: int, column: str) -> str:
    value = cells[at].strip(" \t\xa0\u200b\ufeff") if at < len(cells) else ""
    if column == "path":
        return value  # as the file system has it
    value = _plain(value)
    if column != "group" and ("\n" in value or "\r" in value):  # a group may come from a file's name, by --groups REGEX
        what, fix = f"line {line}: the {column} goes over several lines", "close the quotation mark that is open there"
        raise DataError(what, path=path, found=quote(value), fix=fix)
    return "" if value.casefold() in NO_VALUE else value


def _plain(text: str) -> str:
    return (text if text.isascii() else unicodedata.normalize("NFC", text)).strip().strip("\u200b\ufeff")


# Columns


def _says_nothing(values: list[str]) -> bool:
    """Tell whether a column without a name is empty, or counts the rows, as libraries write an index."""
    counts = (list(map(str, range(first, first + len(values)))) for first in (0, 1))
    return not any(values) or values in counts


def _called(header: Sequence[str], column: str, aliases: dict[str, str] = _ALIASES) -> list[int]:
    """Return the positions of the columns that are called like this one."""
    names = {_letters(alias) for alias in aliases.get(column, "").split()}
    return [at for at, name in enumerate(header) if _letters(_plain(name)) in names]


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name).casefold().rstrip("s")


def choose_columns(
    path: Root,
    header: list[str],
    required: Sequence[str],
    optional: Sequence[str],
    literal: Sequence[str],
    choice: ColumnChoice,
) -> dict[str, int]:
    """Return the position of each column: where the user says, else by its usual names."""
    asked = {new: find_name(old, header) for new, old in choice.names.items()}
    elsewhere = {at for new, found in asked.items() for at in found}
    chosen = {}
    names = listed(quote(name) or "(no name)" for name in header) if any(header) else "an empty file"
    for column in (*required, *optional, *literal):
        found = asked.get(column, [])
        for aliases in ({column: column},) if column in literal else (_ALIASES, _WEAK_ALIASES):
            found = found or [at for at in _called(header, column, aliases) if at not in elsewhere]
        if literal and len(found) > 1:  # of metadata, where rows that do not join are named
            found = [at for at in found if header[at] == column] or found
        if len(found) > 1:
            raise DataError(
                f"{len(found)} columns could be the {column}: {', '.join(header[at] for at in found)}",
                path=path,
                expected=f"one column called {column}, or by another usual name",
                found=names,
                fix=f"name it with --columns {column}=NAME, or rename or delete those that are not the {column}",
            )
        if found:
            chosen[column] = found[0]
        elif column in required:
            raise DataError(
                f"the column {column} is missing",
                path=path,
                expected=f"a first line that names the columns {', '.join(required)}, separated by comma, semicolon or "
                f"tab; {column} may be called {', '.join(_ALIASES[column].split()[1:6])}",
                found=names,
                fix=f"name the column {column} in the first line, or with --columns {column}=NAME",
            )
    return chosen
