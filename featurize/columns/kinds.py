"""Decides what the texts of a column are: numbers, dates, categories or texts. One form per column; doubts are said."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import date, timedelta
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.cache.extra import ExtraColumn
from xfeat.featurize.datasets.column_choice import MISSING
from xfeat.featurize.text import quote

MAX_NAMES = 1_000
MAX_TEXT_BYTES = 4_096
_MAX_COLUMN_BYTES = 256 << 20  # all texts take the room of the longest
_FEW_NAMES, _ROWS_PER_NAME = 20, 10
_EXACT_DIGITS = 15  # a float64 holds every integer of so many digits
_MANY_IDS, _ID_DIGITS = 10, 5
_SAMPLE = 1_000  # values; if none of them is a number, a million others are not asked one by one
_ID_NAME = re.compile(r"(.*[\W_])?(id|ids|uid|nr|no|num|number|index|mrn|accession\w*|unnamed\W*0)|.*[a-z]ID", re.ASCII)
_DATE_NAME = re.compile(r"date|datum|dato|fecha|data\b|day|tag\b|dob|birth", re.IGNORECASE)
# Source: Excel counts days from 1899-12-30, as if 1900 had been a leap year; these numbers are 1954 to 2064.
_EXCEL_DAY_0, _EXCEL_DAYS = date(1899, 12, 30), range(20_000, 60_001)
_YEARS = range(1800, 2201)
_TIME = r"(?:[T ]+(\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?) ?(?:[AP]M)?(?:Z|[+-]\d{2}:?\d{2})?)?"
_DAYS_OF = {"Y": 365.25, "M": 365.25 / 12, "W": 7.0, "D": 1.0}


class Typed(NamedTuple):
    """A column with its type.

    Attributes:
        column: ``None`` if there is nothing to store.
        notes: what the user should know of it, each for a message after ``column NAME:``.
    """

    column: ExtraColumn | None
    notes: list[str]


def typed_column(name: str, cells: Sequence[str], *, kind: str = "", source: str = "") -> Typed:
    """Return the column that texts are.

    Args:
        name: of the column: day numbers of a spreadsheet are dates in ``scan_date``, numbers text in ``patient_id``.
        cells: the text of each of N rows, stripped.
        kind: that the user asks for, see :class:`~xfeat.featurize.datasets.column_choice.ColumnChoice`; by default what
            all texts are.
        source: where they come from.
    """
    found = Counter(cells)
    words = {text: count for text, count in found.items() if kind != "text" and text.casefold() in MISSING}
    known = {text: count for text, count in found.items() if text and text not in words}
    if not known:
        return Typed(None, ["no value in any row; left out"])
    notes = []
    if words:
        notes.append("read as unknown: " + ", ".join(f"{quote(word)} ({count})" for word, count in words.items()))
    unknown = len(cells) - sum(known.values())
    if 2 * unknown >= len(cells):
        notes.append(f"unknown in {unknown} of {len(cells)} rows")
    if len(known) == 1 and len(cells) > 1:
        notes.append("the same value in every row that has one")
    column, more = _as_asked(name, known, kind) if kind else _as_found(name, known)
    notes += more
    if isinstance(column, tuple):
        values, read = column
        unit, missing = ("datetime64[D]", None) if read == "date" else ("f8", np.nan)
        made = ExtraColumn(read, np.array([values.get(text, missing) for text in cells], unit))
    elif column == "text":
        encoded = {text: text.encode("utf-8", "replace") for text in known}
        width = max(map(len, encoded.values()))
        if width > MAX_TEXT_BYTES or width * len(cells) > _MAX_COLUMN_BYTES:
            return Typed(None, [f"texts of up to {width:,} bytes are too long for a cache; left out"])
        made = ExtraColumn("text", np.array([encoded.get(text, b"") for text in cells], "S"))
    else:
        made = _categories(cells, known)
        if len(made.names) < len(known):
            notes.append("capitals do not count: " + _examples([text for text in known if text not in made.names]))
    return Typed(made._replace(source=source), notes)


def years(age: str) -> float | None:
    """Return an age as DICOM writes it (``034Y``, ``006M``, ``2W``, ``010D``) in years, ``None`` if it is none.

    Source: DICOM PS3.5 table 6.2-1, Age String.
    """
    found = re.fullmatch(r"(\d{1,3})([DWMY])", age.strip().upper(), re.ASCII)
    return int(found[1]) * _DAYS_OF[found[2]] / 365.25 if found else None


_Known = dict[str, int]
_Choice = tuple["str | tuple[dict[str, Any], str]", list[str]]
"""``category`` or ``text``, or the values by text with their kind; and notes."""


def _as_found(name: str, known: _Known) -> _Choice:
    """Decide what all texts are."""
    if values := _integers(known):
        return _as_integers(name, known, values)
    for form, parse in _NUMBERS.items():
        if numbers := _all(known, parse):
            if form == "comma" and _all(known, _NUMBERS["thousands comma"]):
                example = next(text for text in known if "," in text)
                fix = f"{name}:number reads commas as decimal ones"
                return "text", [f"{quote(example)} can be a decimal or a thousand: kept as text; {fix}"]
            return (numbers, "number"), ["ages are read as years"] if form == "age" else []
    dates = {form: days for form in _ASKED["date"] if (days := _all(known, _DATES[form]))}
    if len({tuple(days.values()) for days in dates.values()}) > 1:
        return "text", [_two_readings(name, known)]
    if dates:
        return (next(iter(dates.values())), "date"), _without_time(known)
    notes = _mixed(name, known)
    return "text" if notes else _words(known), notes


def _as_integers(name: str, known: _Known, values: dict[str, int]) -> _Choice:
    """Decide what integers are: numbers, codes, identifiers or days."""
    if any(re.match(r"[+-]?0\d", text) for text in known):
        if days := _all(known, _DATES["compact"]):
            return (days, "date"), []
        return _words(known), ["codes with leading zeros, and no numbers"]
    if days := _all(known, _DATES["compact"]):
        return (days, "date"), []
    numbers = values.values()
    if _DATE_NAME.search(name) and (days := _all(known, _DATES["spreadsheet"])):
        return (days, "date"), [f"day numbers of a spreadsheet are read as dates ({_examples(known)})"]
    if set(numbers) in ({0, 1}, {1, 2}):
        return "category", []
    if max(len(str(abs(number))) for number in numbers) > _EXACT_DIGITS:
        return _words(known), ["integers of over 15 digits, which a number would round"]
    if _each_once(known) and _are_ids(name, list(numbers)):
        return "text", ["another integer in every row: an identifier, kept as text"]
    return (values, "number"), []


def _are_ids(name: str, numbers: list[int]) -> bool:
    lengths = {len(str(number)) for number in numbers}
    counted = len(numbers) >= _MANY_IDS and max(numbers) - min(numbers) == len(numbers) - 1
    return bool(_ID_NAME.fullmatch(name)) or counted or (len(lengths) == 1 and min(lengths) >= _ID_DIGITS)


def _as_asked(name: str, known: _Known, kind: str) -> _Choice:
    """Read all texts as one kind; what cannot be read so is unknown, and counted."""
    if kind in ("category", "text"):
        if kind == "category" and len(known) > MAX_NAMES:
            return "text", [f"{len(known):,} different values are too many categories: kept as text"]
        return kind, []
    forms = _NUMBERS if kind == "number" else {form: _DATES[form] for form in _ASKED[kind]}
    read = [{text: value for text in known if (value := parse(text)) is not None} for parse in forms.values()]
    counts = [sum(known[text] for text in values) for values in read]
    best, *others = (values for values, count in zip(read, counts, strict=True) if count == max(counts))
    if kind == "date" and any(values != best for values in others):
        return "text", [_two_readings(name, known)]
    if not best:
        return "text", [f"no value is a {kind} ({_examples(known)}): kept as text"]
    lost = [text for text in known if text not in best]
    unread = f"no {kind}, and unknown: {sum(known[text] for text in lost)} ({_examples(lost)})"
    return (best, kind.partition("-")[0]), [unread] if lost else []


def _two_readings(name: str, known: _Known) -> str:
    fix = f"{name}:date-dmy or {name}:date-mdy reads them"
    return f"dates whose day and month cannot be told apart ({_examples(known)}): kept as text; {fix}"


def _words(known: _Known) -> str:
    """Return ``category`` if values are repeated, and ``text`` if they are mostly different, as identifiers are."""
    rows, names = sum(known.values()), len(known)
    if rows > 2 and _each_once(known):
        return "text"
    return "category" if names <= min(MAX_NAMES, max(_FEW_NAMES, rows // _ROWS_PER_NAME)) else "text"


def _each_once(known: _Known) -> bool:
    return len(known) > 2 and max(known.values()) == 1


def _mixed(name: str, known: _Known) -> list[str]:
    """Say what is mixed, in a column whose values are mostly, but not all, numbers or dates of one form."""
    rows = sum(known.values())
    for kind, forms in (("number", _NUMBERS.values()), ("date", [_DATES[form] for form in _ASKED["date"]])):
        first = [text for text in islice(known, _SAMPLE) if _is_any(text, forms)]
        like = [text for text in known if _is_any(text, forms)] if first else []
        count = sum(known[text] for text in like)
        if 2 * count < rows:
            continue
        if count == rows:
            return [f"{kind}s in several forms ({_examples(like)}): kept as text"]
        other = [text for text in known if text not in set(like)]
        fix = f"{name}:{kind} makes them unknown, {name}:category keeps them"
        return [f"{kind}s: {count}, others: {rows - count} ({_examples(other)}); kept as text; {fix}"]
    if all(re.fullmatch(r"\d{1,2}([./-])\d{1,2}\1\d{2}", text) for text in known):
        return ["years of two digits, which are not read as dates: kept as text"]
    if _each_once(known):
        return ["another value in every row: kept as text"]
    return [] if _words(known) == "category" else [f"{len(known)} different values: kept as text"]


def _is_any(text: str, forms: Iterable[Callable[[str], Any]]) -> bool:
    return any(parse(text) is not None for parse in forms)


def _without_time(known: _Known) -> list[str]:
    times = (found[1] for text in known if (found := re.search(r"[T ](\d{1,2}:[\d:.]+)", text)))
    return ["the time of day is left out"] if any(time.strip("0:.") for time in times) else []


def _examples(texts: Sequence[str] | _Known) -> str:
    shown = [quote(text) for text in list(texts)[:3]]
    return ", ".join(shown) + ", …" * (len(texts) > 3)


# Numbers and dates


def _all(known: _Known, parse: Callable[[str], Any]) -> dict[str, Any] | None:
    values = {}
    for text in known:
        if (value := parse(text)) is None:
            return None
        values[text] = value
    return values


def _integers(known: _Known) -> dict[str, int] | None:
    """Return integers, also those that a library with missing values has written as ``3.0``."""
    return _all(known, lambda text: int(found[1]) if (found := re.fullmatch(r"([+-]?\d+)(\.0)?", text, re.A)) else None)


def _number(pattern: str, decimal: str = ".", thousands: str = "") -> Callable[[str], float | None]:
    matches = re.compile(rf"[+-]?{pattern}", re.ASCII).fullmatch

    def parse(text: str) -> float | None:
        text = text.replace("\u2212", "-")
        value = float(text.replace(thousands, "").replace(decimal, ".")) if matches(text) else math.inf
        return value if math.isfinite(value) else None

    return parse


_NUMBERS: dict[str, Callable[[str], float | None]] = {
    "point": _number(r"(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"),
    "comma": _number(r"(\d+,?\d*|,\d+)", decimal=","),
    "thousands comma": _number(r"\d{1,3}(,\d{3})*(\.\d+)?", thousands=","),
    "thousands point": _number(r"\d{1,3}(\.\d{3})*(,\d+)?", decimal=",", thousands="."),
    "age": years,
}


def _date(pattern: str) -> Callable[[str], date | None]:
    matches = re.compile(pattern + _TIME, re.ASCII).fullmatch

    def parse(text: str) -> date | None:
        if (found := matches(text)) and int(found["y"]) in _YEARS:
            with suppress(ValueError):  # no such day
                return date(int(found["y"]), int(found["m"]), int(found["d"]))
        return None

    return parse


def _day_number(text: str) -> date | None:
    whole = re.fullmatch(r"(\d{5})(\.\d+)?", text, re.ASCII)
    return _EXCEL_DAY_0 + timedelta(int(whole[1])) if whole and int(whole[1]) in _EXCEL_DAYS else None


_DATES: dict[str, Callable[[str], date | None]] = {
    "iso": _date(r"(?P<y>\d{4})(?P<s>[-/.])(?P<m>\d{1,2})(?P=s)(?P<d>\d{1,2})"),
    "dmy": _date(r"(?P<d>\d{1,2})(?P<s>[-/.])(?P<m>\d{1,2})(?P=s)(?P<y>\d{4})"),
    "mdy": _date(r"(?P<m>\d{1,2})(?P<s>[-/])(?P<d>\d{1,2})(?P=s)(?P<y>\d{4})"),  # with points, the day comes first
    "compact": _date(r"(?P<y>\d{4})(?P<m>\d{2})(?P<d>\d{2})"),
    "spreadsheet": _day_number,
}
_ASKED = {
    "date": ("iso", "dmy", "mdy", "compact", "spreadsheet"),
    "date-dmy": ("dmy",),
    "date-mdy": ("mdy",),
}


# Categories


def _categories(cells: Sequence[str], known: _Known) -> ExtraColumn:
    """Number the values in their order; of those that differ in capitals alone, the most frequent gives the name."""
    numbers = _integers(known)
    written = {text: str(numbers[text]) if numbers and text.endswith(".0") else text for text in known}
    spelling: dict[str, str] = {}
    for text in sorted(known, key=lambda text: (-known[text], text)):
        spelling.setdefault(written[text].casefold(), written[text])
    names = sorted(spelling.values(), key=lambda name: (int(float(name)) if numbers else 0, name))
    codes = {text: names.index(spelling[written[text].casefold()]) for text in known}
    values: NDArray[np.int32] = np.array([codes.get(text, -1) for text in cells], np.int32)
    return ExtraColumn("category", values, tuple(names))
