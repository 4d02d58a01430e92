"""The comparison as a table that fits the terminal, or as plain aligned lines."""

from __future__ import annotations

import sys

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from xfeat.head.compare.comparison import Comparison
from xfeat.head.compare.table import cells, headings, notes

_WIDEST_NAME, _NARROW_NAME, _WIDEST_SETTING, _WIDEST_VERDICT = 32, 10, 14, 32
# Columns to hide on a narrow terminal, in this order.
_HIDE_FIRST = ("balanced", "95 % interval", "loss", "AUC", "their interval")
_ENDLESS = 10_000


def comparison_text(comparison: Comparison) -> str:
    """Return the table and its notes: with rules on a terminal, aligned with blanks elsewhere."""
    console = Console(width=_ENDLESS, no_color=not sys.stdout.isatty())
    if sys.stdout.isatty():
        table, left_out = fitting_table(comparison, Console().width)
    else:  # a line of the table is a line of the output, however long
        table, left_out = _table(comparison), ()
    with console.capture() as capture:
        console.print(table)
    lines = [f"on the {comparison.part} images:", *(line.rstrip() for line in capture.get().splitlines())]
    if left_out:
        lines.append(f"columns hidden (terminal too narrow): {', '.join(left_out)}; --csv and --html have all columns")
    return "\n".join([*lines, *notes(comparison)])


def fitting_table(comparison: Comparison, width: int) -> tuple[Table, tuple[str, ...]]:
    """Return a table of at most ``width`` characters, if possible, and the hidden columns.

    With very many settings it is wider: wrapped lines are better than truncated cells.
    """
    endless = Console(width=_ENDLESS)
    for count in range(len(_HIDE_FIRST) + 1):
        table = _table(comparison, widest=_WIDEST_NAME, left_out=_HIDE_FIRST[:count])
        if endless.measure(table).maximum <= width:
            return table, _HIDE_FIRST[:count]
    table = _table(comparison, widest=_NARROW_NAME, left_out=_HIDE_FIRST)
    table.width = max(width, endless.measure(table).minimum)
    return table, _HIDE_FIRST


def _table(comparison: Comparison, *, widest: int | None = None, left_out: tuple[str, ...] = ()) -> Table:
    """Return the table; with ``widest`` it is for a terminal, where long names of runs and settings are wrapped."""
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
