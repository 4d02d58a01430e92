"""The page of ``xhead compare --html``: the table and the training curves."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from xfeat.featurize.errors import RunError
from xfeat.head.compare.comparison import Comparison, Entry
from xfeat.head.compare.significance import LARGER
from xfeat.head.compare.table import AGAINST_FIRST, COLUMNS, difference_cells, notes, setting_text
from xfeat.head.reports.plots import COLOURS, overlaid_curves
from xfeat.head.reports.run_report import page_template
from xfeat.head.runs.reader import read_history
from xfeat.head.training.history import EpochRecord

logger = logging.getLogger(__name__)

# One colour per curve: only the best runs are drawn.
MAX_CURVES = len(COLOURS)


def render_comparison(comparison: Comparison) -> str:
    """Return the page, one self-contained HTML file."""
    drawn = [entry for entry in comparison.entries if entry.run is not None][:MAX_CURVES]
    histories = _histories(drawn)
    return page_template("template.html", "xfeat.head.compare").render(
        comparison=comparison,
        columns=COLUMNS,
        against_first=AGAINST_FIRST,
        notes=notes(comparison),
        rows=[_row(comparison, entry) for entry in comparison.entries],
        drawn=len(histories),
        legend=list(zip(histories, COLOURS, strict=False)),
        left_out=sum(entry.run is not None for entry in comparison.entries) - len(drawn),
        figures=[
            overlaid_curves(list(histories.values()), part, quantity)
            for quantity in ("loss", "accuracy")
            for part in ("train", "valid")
        ],
    )


def _histories(entries: Sequence[Entry]) -> dict[str, list[EpochRecord]]:
    histories: dict[str, list[EpochRecord]] = {}
    for entry in entries:
        try:
            histories |= {} if entry.run is None else {entry.name: read_history(entry.run)}
        except RunError as error:
            logger.warning("curves not drawn: %s", error)
    return histories


def _row(comparison: Comparison, entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "settings": [setting_text(name, entry.settings.get(name)) for name in comparison.differing],
        "metrics": entry.metrics[comparison.part],
        "is_clear": entry.difference is not None and entry.difference.verdict == LARGER,
        "against_first": difference_cells(entry.difference),
    }
