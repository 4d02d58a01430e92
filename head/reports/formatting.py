"""How metrics are written as text, on the terminal and in reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def number(value: float | None) -> str:
    """Write a number with four decimals; a missing one is a dash."""
    return "–" if value is None else f"{value:.4f}"


def percent(value: float | None) -> str:
    """Write a proportion as a percentage; a missing one is a dash."""
    return "–" if value is None else f"{100 * value:.1f} %"


def interval(ends: Sequence[float] | None) -> str:
    """Write an interval of proportions: ``91.5 to 99.0 %``."""
    return "–" if ends is None else f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f} %"


def with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    """Write a proportion and its interval: ``97.0 % (91.5 to 99.0)``."""
    if value is None or interval is None:
        return percent(value)
    return f"{percent(value)} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def class_lines(classes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Write one line per class, from :func:`xfeat.head.evaluation.metrics.classification_metrics`."""
    return [
        f"{name}: sensitivity {percent(row['sensitivity'])}, specificity {percent(row['specificity'])}"
        for name, row in classes.items()
    ]


def threshold_line(metrics: Mapping[str, Any]) -> str:
    """Write the result of :func:`xfeat.head.evaluation.operating_point.threshold_metrics`."""
    names = {"sensitivity": "sensitivity", "specificity": "specificity", "ppv": "PPV", "npv": "NPV"}
    return ", ".join(f"{name} {with_interval(**metrics[key])}" for key, name in names.items())


def points(share: float) -> str:
    """Write a difference of proportions in percentage points, with its sign: ``−2.1``."""
    return f"{100 * share:+.1f}".replace("-", "−")


def confusion_lines(names: Sequence[str], matrix: Sequence[Sequence[int]]) -> list[str]:
    """Write a confusion matrix; rows are true classes, columns are predicted ones."""
    corner = "true \\ predicted"
    width = max(len(name) for name in (*names, corner))
    columns = [max(8, len(name)) for name in names]
    lines = [corner.ljust(width) + "".join(f"  {name:>{wide}}" for name, wide in zip(names, columns, strict=True))]
    for name, row in zip(names, matrix, strict=True):
        cells = "".join(f"  {count:>{wide}}" for count, wide in zip(row, columns, strict=True))
        lines.append(name.ljust(width) + cells)
    return lines
