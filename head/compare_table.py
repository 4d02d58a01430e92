"""The comparison as lines of text, CSV and JSON. Free of matplotlib."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from head.compare import Comparison
from head.compare_chance import Difference
from head.text import interval

COLUMNS = ("accuracy", "balanced_accuracy", "auc", "loss")


def headings(comparison: Comparison) -> list[str]:
    """Return the column names of :func:`cells`."""
    names = ["run", *comparison.differing, "accuracy", "95 % interval", "balanced", "AUC", "loss"]
    return [*(name.replace("_", " ") for name in names), "accuracy against the first"]


def cells(comparison: Comparison) -> list[list[str]]:
    """Return the table, an entry a line."""
    return [
        [
            entry.name,
            *(setting_text(name, entry.settings.get(name)) for name in comparison.differing),
            number(entry.metrics[comparison.part]["accuracy"]),
            interval(entry.metrics[comparison.part]["accuracy_interval"]),
            *(number(entry.metrics[comparison.part][name]) for name in COLUMNS[1:]),
            difference_text(difference),
        ]
        for entry, difference in zip(comparison.entries, comparison.differences, strict=True)
    ]


def as_csv(comparison: Comparison) -> str:
    """Return the comparison as CSV, figures with all their digits."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    figures = [f"{comparison.part}_{name}" for name in COLUMNS]
    writer.writerow(["run", *comparison.differing, *figures, "difference", "p", "verdict"])
    for entry, difference in zip(comparison.entries, comparison.differences, strict=True):
        against: Sequence[Any] = ("", "", "")
        if difference is not None:
            against = ("", "", difference.verdict)
            if not difference.problem:
                against = (difference.accuracy, difference.p, difference.verdict)
        metrics = entry.metrics[comparison.part]
        settings = [
            setting_text(name, entry.settings[name]) if name in entry.settings else "" for name in comparison.differing
        ]
        writer.writerow([entry.name, *settings, *(metrics[name] for name in COLUMNS), *against])
    return stream.getvalue()


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as plain types."""
    return {
        "part": comparison.part,
        "sort": comparison.sort,
        "differing": comparison.differing,
        "entries": [
            {
                "name": entry.name,
                "run": str(entry.run.folder) if entry.run else None,
                "settings": entry.settings,
                "metrics": {part: _brief(figures) for part, figures in entry.metrics.items()},
                "against_first": difference and {**asdict(difference), "verdict": difference.verdict},
            }
            for entry, difference in zip(comparison.entries, comparison.differences, strict=True)
        ],
    }


def difference_text(difference: Difference | None) -> str:
    """Write a difference for people: ``−2.1 points, p 0.031: larger than chance``."""
    if difference is None:
        return "–"
    if difference.problem:
        return f"not comparable: {difference.problem}"
    ends = ""
    if difference.interval is not None:
        low, high = (_points(end) for end in difference.interval)
        ends = f" ({low} to {high} by patient)"
    return f"{_points(difference.accuracy)} points{ends}, p {difference.p:.2g}: {difference.verdict}"


def setting_text(name: str, value: Any) -> str:
    """Write a setting as the command line takes it; a dash for what has none."""
    if value is None:
        return "–"
    if name == "hidden":
        return ",".join(map(str, value)) or "linear"
    return f"{value:g}" if isinstance(value, float) else str(value)


def number(value: float | None) -> str:
    """Write a figure with four digits, a missing one as a dash."""
    return "–" if value is None else f"{value:.4f}"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def _brief(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: figures[name] for name in ("images", "accuracy_interval", *COLUMNS)}
