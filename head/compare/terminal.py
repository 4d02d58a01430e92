"""The comparison as a table for a terminal, with as many columns as it has room for, or as plain aligned lines."""

from __future__ import annotations

import sys

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from xfeat.head.compare.comparison import Comparison
from xfeat.head.compare.table import cells, headings, notes

_WIDEST_NAME, _NARROW_NAME, _WIDEST_SETTING, _WIDEST_VERDICT = 32, 10, 14, 32
# Headings that a narrow terminal goes without, the first of them first.
_LESS_WANTED = ("balanced", "95 % interval", "loss", "AUC", "their interval")
_ENDLESS = 10_000


def comparison_text(comparison: Comparison) -> str:
    """Return the table and what must be known of it: with lines on a terminal, aligned with blanks elsewhere."""
    console = Console(width=_ENDLESS, no_color=not sys.stdout.isatty())
    if sys.stdout.isatty():
        table, left_out = fitting_table(comparison, Console().width)
    else:  # a line of the table is a line of the output, however long
        table, left_out = _table(comparison), ()
    with console.capture() as capture:
        console.print(table)
    lines = [f"on the {comparison.part} images:", *(line.rstrip() for line in capture.get().splitlines())]
    if left_out:
        lines.append(f"left out for want of room: {', '.join(left_out)}; a wider terminal, --csv or --html have them")
    return "\n".join([*lines, *notes(comparison)])


def fitting_table(comparison: Comparison, width: int) -> tuple[Table, tuple[str, ...]]:
    """Return a table that is ``width`` characters wide or less, if that can be, and the columns that it goes without.

    With very many settings it stays wider: lines that the terminal breaks are better than cells cut short.
    """
    endless = Console(width=_ENDLESS)
    for count in range(len(_LESS_WANTED) + 1):
        table = _table(comparison, widest=_WIDEST_NAME, left_out=_LESS_WANTED[:count])
        if endless.measure(table).maximum <= width:
            return table, _LESS_WANTED[:count]
    table = _table(comparison, widest=_NARROW_NAME, left_out=_LESS_WANTED)
    table.width = max(width, endless.measure(table).minimum)
    return table, _LESS_WANTED


def _table(comparison: Comparison, *, widest: int | None = None, left_out: tuple[str, ...] = ()) -> Table:
    """Return the table; with ``widest``, for a terminal, where names of runs and settings take several lines."""
    terminal = widest is not None
    table = Table(box=box.SIMPLE_HEAD if terminal else None, pad_edge=False, show_edge=False, collapse_padding=terminal)
    names, rows = headings(comparison), cells(comparison)
    folding = dict.fromkeys(range(1, len(comparison.differing) + 1), _WIDEST_SETTING)
    folding |= {0: widest or 0, len(names) - 1: _WIDEST_VERDICT}
    shown = [place for place, name in enumerate(names) if name not in left_out]
    for place in shown:
        fold = terminal and place in folding
        longest = max(len(word) for text in (names[place], *(row[place] for row in rows)) for word in text.split())
        table.add_column(
            names[place],
            justify="left" if place in (0, len(names) - 1) else "right",
            min_width=min(longest, folding[place]) if fold else None,
            max_width=folding[place] if fold else None,
            no_wrap=not fold,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(row[place]) for place in shown))
    return table
