"""Reads the first sheet of an Excel workbook as rows of text, formulas as their values. Needs the extra ``excel``."""

from __future__ import annotations

import io
import logging
import re
import warnings
import zipfile
from collections.abc import Iterator
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

from xfeat.featurize.errors import DataError, MissingExtraError
from xfeat.featurize.text import listed, quote

logger = logging.getLogger(__name__)

SHEET_ROWS = 1 << 20  # of Excel
# XML shrinks to a tenth or less; a sheet that inflates further, or is mostly empty cells, is no table.
_SMALL_BYTES, _MAX_RATIO = 64 << 20, 20
_MANY_CELLS = 20_000_000
_CHUNK_BYTES = 1 << 20
_SAVE = "open it in a spreadsheet program and save it again, or save it as CSV with the encoding UTF-8"


def is_workbook(content: bytes) -> bool:
    """Tell whether the content of a file is an Excel workbook of the kind that :func:`workbook_rows` reads."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return "xl/workbook.xml" in archive.namelist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
        return False


def workbook_rows(path: Path, content: bytes) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the cells of each row of the first visible sheet that is not blank.

    Numbers are written as the sheet shows them where that matters: whole ones without a decimal point, and with leading
    zeros if that is their format. Dates are ISO 8601.

    Raises:
        MissingExtraError: without openpyxl.
        DataError: if it is damaged, inflates too far, has no visible sheet, or has formulas without values.
    """
    try:
        import openpyxl
    except ModuleNotFoundError as error:
        fix = "pip install 'xfeat-onnx[excel]'"
        raise MissingExtraError("Excel workbooks need openpyxl", path=path, fix=fix) from error
    _check_size(path, content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of features that do not matter here, such as validations
            values = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True, keep_links=False)
            sheet = _first_visible(path, values)
            formulas: Iterator[Any] = iter(())
            if _has_formulas(content):
                book = openpyxl.load_workbook(io.BytesIO(content), read_only=True, keep_links=False)
                formulas = _first_visible(path, book).iter_rows()
            yield from _rows(path, sheet.iter_rows(), formulas)
    except DataError:
        raise
    except Exception as error:  # whatever is wrong with it
        found = f"{type(error).__name__}: {quote(error)}"
        raise DataError("not a workbook that can be read", path=path, found=found, fix=_SAVE) from error


def _rows(path: Path, rows: Iterator[Any], formulas: Iterator[Any]) -> Iterator[tuple[int, list[str]]]:
    cells = 0
    for number, row in enumerate(rows, start=1):
        cells += len(row)
        if number > SHEET_ROWS or cells > _MANY_CELLS:
            raise DataError(
                "more rows, or empty cells, than a table has",
                path=path,
                expected=f"at most {SHEET_ROWS:,} rows and {_MANY_CELLS:,} cells",
                fix="remove cells far below or far to the right of the table, or save it as CSV",
            )
        for cell in next(formulas, ()):
            if cell.data_type == "f" and row[cell.column - 1].value is None:
                raise DataError(
                    f"row {number}: the formula in {cell.coordinate} has no value",
                    path=path,
                    expected="formulas with the values that a spreadsheet program stores",
                    found=quote(cell.value),
                    fix=_SAVE,
                )
        texts = [_text(cell) for cell in row]
        if any(texts):
            yield number, texts


def _text(cell: Any) -> str:
    value = cell.value
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, int | float):
        if value != int(value) or abs(value) >= 1e15:
            return f"{value:.15g}"  # as many digits as a sheet shows
        zeros = re.fullmatch(r"0+", cell.number_format or "")
        return str(int(value)).zfill(len(zeros[0]) if zeros else 0)
    if isinstance(value, datetime):
        return value.date().isoformat() if value.time() == time() else value.isoformat(" ", "seconds")
    return value.isoformat() if isinstance(value, date | time) else str(value)


def _first_visible(path: Path, book: Any) -> Any:
    visible = (sheet for sheet in book.worksheets if sheet.sheet_state == "visible")
    sheets = [sheet for sheet in visible if hasattr(sheet, "reset_dimensions")]  # a chart has no rows
    if not sheets:
        raise DataError("no visible sheet", path=path, fix=_SAVE)
    if len(sheets) > 1 and book.data_only:
        logger.warning("%s: the sheet %s is read, of %s", path, quote(sheets[0].title), listed(s.title for s in sheets))
    sheets[0].reset_dimensions()  # what a file says of its size need not be so
    return sheets[0]


def _check_size(path: Path, content: bytes) -> None:
    """Refuse a workbook that says it inflates too far; zipfile inflates no more than it says."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        inflated = sum(member.file_size for member in archive.infolist())
    limit = max(_SMALL_BYTES, _MAX_RATIO * len(content))
    if inflated > limit:
        raise DataError(
            f"it inflates to {inflated >> 20:,} MB",
            path=path,
            expected=f"at most {limit >> 20:,} MB, {_MAX_RATIO} times its size",
            fix="save the table alone as CSV with the encoding UTF-8",
        )


def _has_formulas(content: bytes) -> bool:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in archive.namelist():
            if name.startswith("xl/worksheets/"):
                with archive.open(name) as member:
                    before = b""
                    while chunk := member.read(_CHUNK_BYTES):
                        if re.search(rb"<(\w+:)?f[ />]", before + chunk):
                            return True
                        before = chunk[-8:]
    return False
