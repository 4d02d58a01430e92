"""The page of ``xhead compare --html``: the table and the training curves."""

from __future__ import annotations

import logging
from typing import Any

from xfeat.featurize.errors import RunError
from xfeat.head.compare.comparison import Comparison, Entry
from xfeat.head.compare.significance import AGAINST_FIRST, LARGER, difference_cells
from xfeat.head.compare.table import COLUMNS, notes, setting_text
from xfeat.head.reports.canvas import COLOURS, as_svg
from xfeat.head.reports.plots import overlaid_curves
from xfeat.head.reports.run_report import page_template
from xfeat.head.runs.reader import read_history
from xfeat.head.training.history import EpochRecord

logger = logging.getLogger(__name__)

# One colour per curve: only the best runs are drawn.
MAX_CURVES = len(COLOURS)


def render_comparison(comparison: Comparison) -> str:
    """Return the page, one self-contained HTML file."""
    trained = [(entry.name, entry.run) for entry in comparison.entries if entry.run is not None]
    drawn = trained[:MAX_CURVES]
    histories: dict[str, list[EpochRecord]] = {}
    for name, run in drawn:
        try:
            histories[name] = read_history(run)
        except RunError as error:
            logger.warning("curves not drawn: %s", error)
    return page_template("template.html", "xfeat.head.compare").render(
        comparison=comparison,
        columns=COLUMNS,
        against_first=AGAINST_FIRST,
        notes=notes(comparison),
        rows=[_row(comparison, entry) for entry in comparison.entries],
        drawn=len(histories),
        legend=list(zip(histories, COLOURS, strict=False)),
        left_out=len(trained) - len(drawn),
        figures=[
            as_svg(overlaid_curves(list(histories.values()), part, quantity))
            for quantity in ("loss", "accuracy")
            for part in ("train", "valid")
        ],
    )


def _row(comparison: Comparison, entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "settings": [setting_text(name, entry.settings.get(name)) for name in comparison.differing],
        "metrics": entry.metrics[comparison.part],
        "is_clear": entry.difference is not None and entry.difference.verdict == LARGER,
        "against_first": difference_cells(entry.difference),
    }
