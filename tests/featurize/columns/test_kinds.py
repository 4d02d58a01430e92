"""What texts become: a table of the kinds of columns, and what is said of each."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xfeat.featurize.columns.kinds import typed_column, years

F = ["F", "M"] * 10
# Name, forced kind, cells; then kind, texts of some values, and a part of the notes ("" none).
TABLE = {
    "floats": ("bmi", "", ["21.5", "22", ".5", "1e3"], "number", ["21.5", "22", "0.5", "1000"], ""),
    "decimal comma": ("bmi", "", ["21,5", "22", "23,25"], "number", ["21.5", "22", "23.25"], ""),
    "signs": ("t", "", ["-1.5", "\u22122.5", "+3"], "number", ["-1.5", "-2.5", "3"], ""),
    "thousands": ("dose", "", ["1,234.5", "950", "2,000,000"], "number", ["1234.5", "950", "2000000"], ""),
    "German thousands": ("dose", "", ["1.234,5", "950,25"], "number", ["1234.5", "950.25"], ""),
    "comma in doubt": ("dose", "", ["1,234", "950"] * 3, "text", ["1,234", "950"], "decimal or a thousand"),
    "comma, asked": ("dose", "number", ["1,234", "950"] * 3, "number", ["1.234", "950"], ""),
    "two decimal signs": ("bmi", "", ["21,5", "22.5"] * 3, "text", ["21,5"], "numbers in several forms"),
    "ages of DICOM": ("age", "", ["034Y", "006M", "2W", ""], "number", ["34", "0.5"], "years"),
    "integers": ("age", "", ["34", "71", "34"], "number", ["34", "71"], ""),
    "integers of pandas": ("age", "", ["34.0", "71.0", "34.0"], "number", ["34", "71"], ""),
    "0 and 1": ("flag", "", ["0", "1", "1"], "category", ["0", "1", "1"], ""),
    "1.0 and 2.0": ("sex", "", ["1.0", "2.0", ""] * 2, "category", ["1", "2", ""], ""),
    "leading zeros": ("site", "", ["001", "002", "001"], "category", ["001", "002"], "leading zeros"),
    "a year": ("year", "", ["2019", "2020", "2019"], "number", ["2019", "2020"], ""),
    "long identifiers": ("uid", "", ["12345678901234567890"] * 2, "category", ["12345678901234567890"], "15 digits"),
    "infinite": ("x", "", ["inf", "1", "2", "3"], "text", ["inf"], "numbers: 3, others: 1 (inf)"),
    "overflow": ("x", "", ["1e999", "1", "1"], "text", ["1e999"], "others: 1 (1e999)"),
    "categories": ("sex", "", F, "category", F, ""),
    "case": ("sex", "", ["F", "f", "F", "M"], "category", ["F", "F", "F", "M"], "capitals do not count: f"),
    "yes and no": ("icu", "", ["yes", "no", "yes"], "category", ["yes", "no", "yes"], ""),
    "numbered": ("stage", "category", ["10", "9", "10"], "category", ["10", "9", "10"], ""),
    "constant": ("site", "", ["A"] * 5, "category", ["A"] * 5, "the same value in every row"),
    "constant number": ("kvp", "", ["120"] * 5, "number", ["120"] * 5, "the same value in every row"),
    "identifiers": ("name", "", [f"p{n}" for n in range(30)], "text", ["p0", "p1"], "another value in every row"),
    "integer identifiers": ("patient_id", "", ["17", "4", "33"], "text", ["17", "4"], "an identifier"),
    "accession numbers": ("exam", "", ["104433", "104988", "203344"], "text", ["104433"], "an identifier"),
    "row numbers": ("", "", [str(n) for n in range(40)], "text", ["0", "1"], "an identifier"),
    "500 values": ("word", "", [f"w{n % 500}" for n in range(900)], "text", ["w0"], "500 different values"),
    "500 of many": ("word", "", [f"w{n % 500}" for n in range(9000)], "category", ["w0"], ""),
    "half empty": ("sex", "", ["F", "", "M", "", "F", ""], "category", ["F", ""], "unknown in 3 of 6 rows"),
    "mixed": ("age", "", ["34", "35", "old", "34"], "text", ["34", "35", "old"], "numbers: 3, others: 1 (old)"),
    "mixed, asked": (
        "age",
        "number",
        ["34", "35", "old"],
        "number",
        ["34", "35", ""],
        "no number, and unknown: 1 (old)",
    ),
    "asked in vain": ("age", "number", ["a", "b", "a"], "text", ["a", "b"], "no value is a number"),
    "ISO": ("day", "", ["2024-12-31", "2024-1-2"], "date", ["2024-12-31", "2024-01-02"], ""),
    "ISO with midnight": ("day", "", ["2024-12-31 00:00:00"] * 2, "date", ["2024-12-31"], "the same value"),
    "ISO with time": (
        "day",
        "",
        ["2024-12-31T14:30:00Z", "2024-01-02T00:00:00Z"],
        "date",
        ["2024-12-31"],
        "time of day",
    ),
    "day first": ("day", "", ["31/12/2024", "01/02/2024"], "date", ["2024-12-31", "2024-02-01"], ""),
    "month first": ("day", "", ["12/31/2024", "01/02/2024"], "date", ["2024-12-31", "2024-01-02"], ""),
    "points": ("day", "", ["01.02.2024", "03.04.2024"], "date", ["2024-02-01", "2024-04-03"], ""),
    "in doubt": ("day", "", ["01/02/2024", "03/04/2024"] * 2, "text", ["01/02/2024"], "cannot be told apart"),
    "in doubt, asked": ("day", "date", ["01/02/2024", "03/04/2024"] * 2, "text", ["01/02/2024"], "told apart"),
    "asked, day first": ("day", "date-dmy", ["01/02/2024", "03/04/2024"], "date", ["2024-02-01", "2024-04-03"], ""),
    "asked, month first": ("day", "date-mdy", ["01/02/2024", "03/04/2024"], "date", ["2024-01-02", "2024-03-04"], ""),
    "no doubt": ("day", "", ["02/02/2024", "03/03/2024"], "date", ["2024-02-02", "2024-03-03"], ""),
    "compact": ("day", "", ["20241231", "20240102"], "date", ["2024-12-31", "2024-01-02"], ""),
    "eight digits": ("exam", "", ["20241331", "20240102", "20240102"], "number", ["20241331"], ""),
    "day numbers": ("scan_date", "", ["45657", "45293"], "date", ["2024-12-31", "2024-01-02"], "day numbers"),
    "no day numbers": ("dose", "", ["45657", "45293", "45293"], "number", ["45657"], ""),
    "day numbers, asked": ("d", "date", ["45657", "45293"], "date", ["2024-12-31"], ""),
    "three forms": (
        "day",
        "",
        ["2024-12-31", "31/12/2024", "20240101"],
        "text",
        ["2024-12-31"],
        "dates in several forms",
    ),
    "no day": (
        "day",
        "",
        ["2024-02-30", "2024-02-28", "2024-02-27"],
        "text",
        ["2024-02-30"],
        "others: 1 (2024-02-30)",
    ),
    "two digits": ("day", "", ["31/12/24", "01/02/24"] * 2, "text", ["31/12/24"], "years of two digits"),
    "free words": ("x", "text", ["none", "NA", "1"], "text", ["none", "NA", "1"], ""),
    "umlauts": ("Größe", "", ["groß", "klein", "groß"], "category", ["groß", "klein"], ""),
}
MISSING = ["", "NA", "n/a", "N/A", "nan", "NaN", "null", "NULL", "none", "None", "-", "?", "unknown", "Unknown", "#N/A"]
MISSING += [
    "k. A.",
    "k.A.",
    "n. b.",
    "unbekannt",
    "Unbekannt",
    "Inconnu",
    "desconocido",
    "okänd",
    "Not available",
    "不明",
]


@pytest.mark.parametrize("case", TABLE)
def test_texts_become(case: str) -> None:
    name, asked, cells, kind, texts, said = TABLE[case]
    column, notes = typed_column(name, cells, kind=asked, source="list.csv")
    assert column is not None
    assert (column.kind, column.source) == (kind, "list.csv")
    assert column.texts()[: len(texts)] == texts
    assert said in "; ".join(notes)
    assert bool(said) == bool(notes)


@pytest.mark.parametrize("word", MISSING)
@pytest.mark.parametrize("cells", [["1.5", "2.5"], ["F", "M"] * 2, ["2024-12-31"]], ids=["number", "category", "date"])
def test_missing_words_are_unknown_in_every_kind(word: str, cells: list[str]) -> None:
    column, notes = typed_column("x", [*cells, *cells, word])
    plain, _ = typed_column("x", [*cells, *cells])
    assert column is not None
    assert plain is not None
    assert column.kind == plain.kind
    assert column.known.tolist() == [True] * 2 * len(cells) + [False]
    assert any(f"read as unknown: {word} (1)" in note for note in notes) == bool(word)


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (["", "NA", "?"], "no value in any row"),
        (["x" * 5000, "y", "z"], "too long for a cache"),
    ],
)
def test_columns_without_anything_to_store_are_left_out(cells: list[str], said: str) -> None:
    column, notes = typed_column("x", cells)
    assert column is None
    assert said in "; ".join(notes)


@pytest.mark.parametrize(
    ("age", "expected"),
    [("034Y", 34), ("006M", 0.5), ("2W", 14 / 365.25), ("010D", 10 / 365.25), ("", None), ("Y", None)],
)
def test_ages_are_years(age: str, expected: float | None) -> None:
    assert years(age) == (pytest.approx(expected) if expected is not None else None)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=3, max_size=20))
def test_numbers_as_python_writes_them_keep_their_value(numbers: list[float]) -> None:
    column, _ = typed_column("x", [repr(number) for number in numbers], kind="number")
    assert column is not None
    np.testing.assert_array_equal(column.values, numbers)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")).map(str.strip), max_size=30))
def test_any_texts_are_stored_whole_or_said(cells: list[str]) -> None:
    column, notes = typed_column("x", cells)
    if column is None:
        assert notes
        return
    for text, found, known in zip(cells, column.texts(), column.known.tolist(), strict=True):
        assert known or text in ("", *(word for word in cells if f"{word} (" in "; ".join(notes)))
        if column.kind in ("category", "text") and known:
            assert found.casefold() == text.casefold()
