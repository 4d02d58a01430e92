"""The comparison as aligned lines, CSV and JSON. Imports no matplotlib."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from typing import Any

from xfeat.featurize.system.streams import text_width
from xfeat.featurize.text import aligned, columns_of, printable
from xfeat.head.compare.comparison import Comparison
from xfeat.head.compare.significance import NOT_COMPARABLE, Difference, difference_cells
from xfeat.head.reports.formatting import interval, number, percent

COLUMNS = ("accuracy", "balanced_accuracy", "auc", "loss")
# Of :func:`difference_cells`; the line above the table says against which run.
_AGAINST = ("points", "their interval", "p", "verdict")
# Columns to hide on a narrow terminal, in this order.
_HIDE_FIRST = ("balanced", "95 % interval", "loss", "AUC", "their interval")


def lines(comparison: Comparison) -> list[list[str]]:
    """Return the headings, and one line per entry."""
    names = [
        "run",
        *comparison.differing,
        "accuracy",
        "95 % interval",
        "balanced",
        "AUC",
        "loss",
        *_AGAINST,
    ]
    found = [[name.replace("_", " ") for name in names]]
    for entry in comparison.entries:
        metrics = entry.metrics[comparison.part]
        settings = [setting_text(name, entry.settings.get(name)) for name in comparison.differing]
        accuracy = [percent(metrics["accuracy"]), interval(metrics["accuracy_interval"])]
        others = [number(metrics[name]) if name == "loss" else percent(metrics[name]) for name in COLUMNS[1:]]
        found.append([entry.name, *settings, *accuracy, *others, *difference_cells(entry.difference)])
    return found


def as_csv(comparison: Comparison) -> str:
    """Return the comparison as CSV; numbers have all digits."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    figures = [f"{comparison.part}_{name}" for name in COLUMNS]
    writer.writerow(["run", *comparison.differing, *figures, "difference", "p", "verdict", "tested_on"])
    for entry in comparison.entries:
        settings = [
            setting_text(name, entry.settings[name]) if name in entry.settings else "" for name in comparison.differing
        ]
        metrics = entry.metrics[comparison.part]
        writer.writerow(
            [entry.name, *settings, *(metrics[name] for name in COLUMNS), *_against(entry.difference), comparison.part]
        )
    for each in comparison.results:
        measured = [each.metrics[name] for name in COLUMNS]
        tested = "out of fold" if each.kind == "crossval" else "external"
        writer.writerow([each.name, *("" for _ in comparison.differing), *measured, *_against(each.difference), tested])
    return stream.getvalue()


def _against(difference: Difference | None) -> Sequence[Any]:
    if difference is None or difference.problem:
        return "", "", difference.verdict if difference else ""
    return difference.accuracy, difference.p, difference.verdict


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as plain types."""
    return {
        "part": comparison.part,
        "sort": comparison.sort,
        "differing": comparison.differing,
        **{
            f"{kind}s": [each.to_dict() for each in comparison.results if each.kind == kind]
            for kind in ("crossval", "eval")
        },
        "entries": [
            {
                "name": entry.name,
                "run": str(entry.run.folder) if entry.run else None,
                "settings": entry.settings,
                "metrics": {
                    part: {name: figures[name] for name in ("images", "accuracy_interval", *COLUMNS)}
                    for part, figures in entry.metrics.items()
                },
                "against_first": entry.difference and entry.difference.to_dict(),
            }
            for entry in comparison.entries
        ],
    }


def notes(comparison: Comparison) -> list[str]:
    """Return what a reader must know before preferring one run to another."""
    found = []
    if comparison.part == "valid":
        found.append(
            "Not every run has test images: these metrics are optimistically biased, since the epochs were chosen "
            "on the same images"
        )
    differences = [entry.difference for entry in comparison.entries if entry.difference is not None]
    if apart := sum(difference.verdict == NOT_COMPARABLE for difference in differences):
        found.append(
            f"{apart} of {len(comparison.entries)} cannot be compared with {comparison.first}: choose runs that were "
            "tested on the same images"
        )
    if differences:
        found.append(
            f"Points are the accuracy minus that of {comparison.first}, in percentage points; their 95 % confidence "
            "interval is from a bootstrap over patients, if patients have several images"
        )
    if any(entry.run is not None and entry.run.operating_point is not None for entry in comparison.entries):
        found.append("Metrics are those of the most probable class; at its threshold, each run's report has them")
    if any(entry.run is None for entry in comparison.entries):
        found.append("scikit-learn baselines with tuned settings: C is chosen on the validation images")
    if len(comparison.entries) > 2:
        found.append(
            f"The p-value of McNemar's exact test is not corrected for {len(comparison.entries) - 1} comparisons"
        )
    return found


def setting_text(name: str, value: Any) -> str:
    """Write a setting as the command line takes it; a missing one is a dash."""
    if value is None:
        return "–"
    if name == "hidden":
        return ",".join(map(str, value)) or "linear"
    return f"{value:g}" if isinstance(value, float) else str(value)


def comparison_lines(comparison: Comparison) -> list[str]:
    """Return the aligned table and its notes; columns that a terminal has no room for are hidden, and named."""
    results = [each.line for each in comparison.results]
    if not comparison.entries:
        return results
    names, *rows = lines(comparison)
    # Elsewhere, a line of the table is a line of the output, however long.
    width = text_width() if sys.stdout.isatty() else sys.maxsize
    for count in range(len(_HIDE_FIRST) + 1):
        shown = [place for place, name in enumerate(names) if name not in _HIDE_FIRST[:count]]
        table = aligned([[row[place] for place in shown] for row in (names, *rows)], left=(0, len(shown) - 1))
        if columns_of(table) <= width:
            break
    against = f"; points and p are against {printable(comparison.first)}" if len(rows) > 1 else ""
    text = [f"on the {comparison.part} images{against}:", *table]
    if count:
        hidden = ", ".join(_HIDE_FIRST[:count])
        text.append(f"columns hidden (terminal too narrow): {hidden}; --csv and --html have all columns")
    return [*text, *notes(comparison), *results]
