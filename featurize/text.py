"""Text from files, made safe and short enough to print: names, lists of names, columns."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence

MAX_LISTED = 10
LONGEST_QUOTE = 60
_WIDEST_NAME = 32
_ELLIPSIS = "…"


def printable(name: object) -> str:
    """Return a name in one line, with everything escaped that a terminal would obey or not show.

    That is what :meth:`str.isprintable` refuses, except for blanks: control characters (a file name can move the
    cursor), line breaks, marks that change the direction of text, characters of no width, and lone surrogates (the
    bytes of a file name that is not UTF-8).
    """
    text = str(name)
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or unicodedata.category(char) == "Zs" else char.encode("unicode_escape").decode()
        for char in text
    )


def printable_lines(text: str) -> str:
    """Return text of several lines, each made :func:`printable`."""
    return "\n".join(map(printable, text.split("\n")))


def printable_value(value: object) -> object:
    """Return a value of a page: texts with what a browser would obey escaped, markup and everything else as it is."""
    return printable_lines(value) if type(value) is str else value


def shortened(name: object) -> str:
    """Return a printable name of at most 32 characters for a table: of a longer one, the beginning and the end."""
    text = printable(name)
    if len(text) <= _WIDEST_NAME:
        return text
    head = _WIDEST_NAME * 2 // 3
    return text[:head] + _ELLIPSIS + text[head + 1 - _WIDEST_NAME :]


def quote(text: object) -> str:
    """Return the first 60 characters of a text, printable, for a message."""
    line = printable(text)
    return line if len(line) <= LONGEST_QUOTE else line[:LONGEST_QUOTE] + _ELLIPSIS


def first_ten(names: Iterable[object], more: str = "more") -> list[str]:
    """Return the first ten names, or lines that contain some, printable; then how many more there are."""
    texts = [printable(name) for name in names]
    left_out = len(texts) - MAX_LISTED
    return texts if left_out <= 0 else [*texts[:MAX_LISTED], f"{_ELLIPSIS} and {left_out} {more}"]


def listed(names: Iterable[object], separator: str = ", ") -> str:
    """Write names in one line: the first ten, and how many more there are."""
    return separator.join(first_ten(names))


def count_of(number: int, noun: str, plural: str = "") -> str:
    """Return ``1 image``, ``2 images``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def columns_of(lines: Iterable[str]) -> int:
    """Return the columns that the widest line takes on a terminal, where some characters take two, and some none."""
    from rich.cells import cell_len

    return max(map(cell_len, lines), default=0)


def aligned(rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)) -> list[str]:
    """Write a table as lines, by the width that its cells have on a terminal.

    Args:
        rows: the headings, and the rows below them.
        left: columns that are aligned to the left; numbers are aligned to the right.
    """
    table = [[printable(cell) for cell in row] for row in rows]
    widths = [columns_of(column) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        cells = []
        for place, (cell, width) in enumerate(zip(row, widths, strict=True)):
            blanks = " " * (width - columns_of([cell]))
            cells.append(cell + blanks if place in left else blanks + cell)
        lines.append("  ".join(cells).rstrip())
    return lines


def count_lines(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Write the images per split and class, a line per split; of more than ten classes, the smallest and largest."""
    return [f"{split:>6}  {_counts(classes)}" for split, classes in counts.items()]


def _counts(classes: Mapping[str, int]) -> str:
    if len(classes) <= MAX_LISTED:
        return "  ".join(f"{printable(name)} {number}" for name, number in classes.items())
    by_size = sorted(classes, key=classes.__getitem__)
    smallest, largest = (f"{classes[name]} ({printable(name)})" for name in (by_size[0], by_size[-1]))
    return f"{sum(classes.values())} images of {len(classes)} classes, from {smallest} to {largest}: see --json"
