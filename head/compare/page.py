"""The page of ``xhead compare --html``: the table, and ROC and training curves of the best runs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from xfeat.featurize.errors import RunError
from xfeat.featurize.pages.titles import described
from xfeat.featurize.text import count_of
from xfeat.head.compare.comparison import Comparison, Entry
from xfeat.head.compare.significance import LARGER, against, difference_cells
from xfeat.head.compare.table import COLUMNS, notes, setting_text
from xfeat.head.reports.canvas import COLOURS, as_svg
from xfeat.head.reports.plots import overlaid_curves, overlaid_roc
from xfeat.head.reports.run_report import PART_NAMES, page_template
from xfeat.head.runs.reader import Run, read_history

logger = logging.getLogger(__name__)

# One colour per curve: only the best runs are drawn.
MAX_CURVES = len(COLOURS)
T = TypeVar("T")


def render_comparison(comparison: Comparison) -> str:
    """Return the page, one self-contained HTML file."""
    trained = [(entry, entry.run) for entry in comparison.entries if entry.run is not None]
    drawn = trained[:MAX_CURVES]
    headings = [name.replace("_", " ") for name in ("run", *comparison.differing, *COLUMNS)]
    roc, roc_note = _roc(drawn, comparison.part)
    histories = [_readable(read_history, run) or [] for _, run in drawn]
    return page_template("template.html", "xfeat.head.compare").render(
        title=_title(comparison),
        comparison=comparison,
        columns=COLUMNS,
        headings=[*("AUC" if name == "auc" else name for name in headings), *against(comparison.first)],
        notes=notes(comparison),
        rows=[_row(comparison, entry) for entry in comparison.entries],
        drawn=len(drawn),
        legend=list(zip((entry.name for entry, _ in drawn), COLOURS, strict=False)),
        left_out=len(trained) - len(drawn),
        roc_note=roc_note,
        figures=[
            *roc,
            *(
                as_svg(overlaid_curves(histories, part, quantity))
                for quantity in ("accuracy", "loss")
                for part in ("valid", "train")
            ),
        ],
    )


def _title(comparison: Comparison) -> str:
    shown = len(comparison.entries) or len(comparison.results)
    compared = f"{count_of(shown, 'classifier')} compared"
    runs = [entry.run for entry in comparison.entries if entry.run is not None]
    first = next((entry for entry in comparison.entries if entry.name == comparison.first), None)
    if first is None or not first.predictions or len({run.class_names for run in runs}) != 1:
        return compared
    images = count_of(first.metrics[comparison.part]["images"], f"{PART_NAMES[comparison.part]} image")
    groups = [comparison.groups.get(path, "") for path in first.predictions]
    point = runs[0].operating_point
    return described(
        runs[0].class_names,
        f", {images}",
        groups,
        positive=None if point is None else point.positive,
        more=f", {compared}",
    )["title"]


def _roc(drawn: list[tuple[Entry, Run]], part: str) -> tuple[list[str], str]:
    """Draw the ROC curves of runs of the same classes; return them, and what they show or why there is none."""
    if all(entry.problem for entry, _ in drawn):
        return [], "No ROC curves: no run has its predictions." if drawn else ""
    names, point = drawn[0][1].class_names, drawn[0][1].operating_point
    if any(run.class_names != names for _, run in drawn):
        return [], "No ROC curves: the runs have different classes."
    read = [None if entry.problem else _readable(lambda run: run.predicted(part), run) for entry, run in drawn]
    studied = names.index(point.positive) if point else 0
    figure = overlaid_roc([each and each[1:] for each in read], studied)
    of = names[studied] if len(names) == 2 else f"the mean over {len(names)} classes, each versus the rest"
    return [as_svg(figure)], f"ROC curves: {of}, on the {part} images."


def _readable(read: Callable[[Run], T], run: Run) -> T | None:
    try:
        return read(run)
    except RunError as error:
        logger.warning("curves not drawn: %s", error)
        return None


def _row(comparison: Comparison, entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "settings": [setting_text(name, entry.settings.get(name)) for name in comparison.differing],
        "metrics": entry.metrics[comparison.part],
        "is_clear": entry.difference is not None and entry.difference.verdict == LARGER,
        "against_first": difference_cells(entry.difference),
    }
