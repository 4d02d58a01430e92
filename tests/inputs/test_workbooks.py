"""Excel workbooks as tables: what their cells become, and workbooks that cannot or must not be read."""

from __future__ import annotations

import io
import logging
import re
import sys
import zipfile
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest

openpyxl = pytest.importorskip("openpyxl", reason="needs the extra excel")

from tests.inputs.data_sets import make  # noqa: E402
from xfeat.featurize.datasets.layouts import open_dataset  # noqa: E402
from xfeat.featurize.datasets.tables import read_table  # noqa: E402
from xfeat.featurize.errors import DataError, MissingExtraError  # noqa: E402

# What is written into a cell, its number format, and the text that is read.
CELLS: dict[str, tuple[Any, str, str]] = {
    "text": (" Zürich ", "General", "Zürich"),
    "number": (34.5, "General", "34.5"),
    "tenth": (0.1 + 0.2, "General", "0.3"),
    "whole": (34, "General", "34"),
    "whole as a float": (34.0, "0.00", "34"),
    "leading zeros": (7, "000", "007"),
    "leading zeros as text": ("007", "General", "007"),
    "long number": (123456789012345, "General", "123456789012345"),
    "truth": (True, "General", "TRUE"),
    "date": (date(2024, 12, 31), "dd/mm/yyyy", "2024-12-31"),
    "date in months": (datetime(2024, 12, 31), "mm/dd/yy", "2024-12-31"),
    "date and time": (datetime(2024, 12, 31, 14, 30), "yyyy-mm-dd h:mm", "2024-12-31 14:30:00"),
    "empty": (None, "General", ""),
    "error": ("#N/A", "General", "#N/A"),
    "no percent": (0.5, "0%", "0.5"),
}


def workbook(rows: list[list[Any]], formats: dict[str, str] | None = None, sheets: tuple[str, ...] = ()) -> bytes:
    book = openpyxl.Workbook()
    sheet = book.active
    for row in rows:
        sheet.append(row)
    for place, form in (formats or {}).items():
        sheet[place].number_format = form
    for title in sheets:
        book.create_sheet(title).append(["other"])
    file = io.BytesIO()
    book.save(file)
    return file.getvalue()


def changed(content: bytes, name: str, change: Any) -> bytes:
    """Return an archive with one member changed by a function."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.namelist():
            new.writestr(member, change(old.read(member)) if member == name else old.read(member))
    return file.getvalue()


SHEET = "xl/worksheets/sheet1.xml"


def rows_of(folder: Path, content: bytes, name: str = "list.xlsx") -> list[tuple[int, str, tuple[str, ...]]]:
    (folder / name).write_bytes(content)
    table = read_table(folder / name, ("path",))
    return [(row.line, row.path, row.further) for row in table.rows]


@pytest.mark.parametrize("case", CELLS)
def test_a_cell_is_read_as_the_sheet_shows_it(case: str, tmp_path: Path) -> None:
    value, form, text = CELLS[case]
    content = workbook([["path", "x"], ["a.png", value]], {"B2": form})
    assert rows_of(tmp_path, content) == [(2, "a.png", (text,))]


def test_blank_rows_and_columns_do_not_count(tmp_path: Path) -> None:
    content = workbook([[], ["path", None, "age"], [], ["a.png", None, 3], [None, None, None], ["b.png", None, 4]])
    assert rows_of(tmp_path, content) == [(4, "a.png", ("3",)), (6, "b.png", ("4",))]


@pytest.mark.parametrize("suffix", [".xlsx", ".xlsm", ".csv"])
def test_a_manifest_may_be_a_workbook_whatever_it_is_called(tmp_path: Path, suffix: str) -> None:
    make(tmp_path, "a.png", "b.png")
    file = tmp_path / f"list{suffix}"
    file.write_bytes(workbook([["path", "label", "age"], ["a.png", "covid", 3], ["b.png", "normal", 4]]))
    dataset = open_dataset(file)
    assert dataset.class_names == ("covid", "normal")
    assert [entry.further for entry in dataset.entries] == [("3",), ("4",)]


def test_the_first_visible_sheet_is_read_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    book = openpyxl.load_workbook(io.BytesIO(workbook([["x"]], sheets=("data", "more"))))
    book["Sheet"].sheet_state = "hidden"
    book["data"]["A1"], book["data"]["A2"] = "path", "a.png"
    file = io.BytesIO()
    book.active = 1
    book.save(file)
    assert rows_of(tmp_path, file.getvalue()) == [(2, "a.png", ())]
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == [
        f"{tmp_path / 'list.xlsx'}: the sheet data is read, of data, more"
    ]


def with_formula(value: str) -> bytes:
    def write(sheet: bytes) -> bytes:
        cell = f'<c r="B2"><f>1+1</f>{value}</c>'.encode()
        return re.sub(rb'<c r="B2".*?</c>', cell, sheet, flags=re.DOTALL)

    return changed(workbook([["path", "age"], ["a.png", 9]]), SHEET, write)


def test_a_formula_is_read_as_its_value(tmp_path: Path) -> None:
    assert rows_of(tmp_path, with_formula("<v>2</v>")) == [(2, "a.png", ("2",))]


def bomb(sheet: bytes) -> bytes:
    return sheet.replace(b"</sheetData>", b" " * (100 << 20) + b"</sheetData>")


def far_cells(sheet: bytes) -> bytes:
    rows = b"".join(b'<row r="%d"><c r="XFD%d"/></row>' % (n, n) for n in range(3, 3000))
    return sheet.replace(b"</sheetData>", rows + b"</sheetData>")


def far_row(sheet: bytes) -> bytes:
    return sheet.replace(b"</sheetData>", b'<row r="2000000000"><c r="A2"><v>1</v></c></row></sheetData>')


def large_dimension(sheet: bytes) -> bytes:
    return re.sub(rb'<dimension ref="[^"]*" ?/>', b'<dimension ref="A1:XFD1048576"/>', sheet)


PLAIN = [["path", "age"], ["a.png", 9]]


def entities(sheet: bytes) -> bytes:
    levels = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    return f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e0 "ha">{levels}]>'.encode() + sheet.replace(
        b"</sheetData>", b'<row r="3"><c r="A3" t="str"><v>&e11;</v></c></row></sheetData>'
    )


REFUSED = {
    "a formula without a value": (lambda: with_formula(""), r"row 2: the formula in B2 has no value(.|\n)*1\+1"),
    "a bomb": (lambda: changed(workbook(PLAIN), SHEET, bomb), "inflates to 100 MB"),
    "cells far to the right": (lambda: changed(workbook(PLAIN), SHEET, far_cells), "more rows, or empty cells"),
    "a cell far below": (lambda: changed(workbook(PLAIN), SHEET, far_row), "more rows, or empty cells"),
    "entities": (lambda: changed(workbook(PLAIN), SHEET, entities), "not a workbook that can be read"),
    "damaged XML": (lambda: changed(workbook(PLAIN), SHEET, lambda s: s[:300]), "not a workbook that can be read"),
    "no content types": (lambda: changed(workbook(PLAIN), "[Content_Types].xml", lambda s: b"<a/>"), "not a workbook"),
    "cut short": (lambda: workbook(PLAIN)[:-200], "not a CSV file"),
    "no columns": (lambda: workbook([["x"]]), "column path is missing"),
    "empty": (lambda: workbook([]), "column path is missing"),
    "more values than columns": (lambda: workbook([*PLAIN, ["b.png", 1, 2]]), "line 3 has 3 values for 2 columns"),
}


_LONG = {"a bomb", "cells far to the right", "a cell far below"}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] if case in _LONG else []) for case in REFUSED]
)
def test_what_is_no_table_is_refused(case: str, tmp_path: Path) -> None:
    content, said = REFUSED[case]
    with pytest.raises(DataError, match=said):
        rows_of(tmp_path, content())


def test_the_size_that_a_sheet_claims_costs_nothing(tmp_path: Path) -> None:
    assert rows_of(tmp_path, changed(workbook(PLAIN), SHEET, large_dimension)) == [(2, "a.png", ("9",))]


def test_without_openpyxl_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = workbook(PLAIN)
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'xfeat-onnx\[excel\]'"):
        rows_of(tmp_path, content)
