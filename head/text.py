"""How figures read on a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def percent(value: float | None) -> str:
    """Write a share as a percentage, a missing one as a dash."""
    return "–" if value is None else f"{100 * value:.1f} %"


def interval(ends: Sequence[float] | None) -> str:
    """Write an interval of shares: ``91.5 to 99.0 %``."""
    return "–" if ends is None else f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f} %"


def with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    """Write a share and its interval: ``97.0 % (91.5 to 99.0)``."""
    if value is None or interval is None:
        return percent(value)
    return f"{percent(value)} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def confusion_lines(names: Sequence[str], matrix: Sequence[Sequence[int]]) -> list[str]:
    """Write a confusion matrix, rows true and columns predicted."""
    corner = "true \\ predicted"
    width = max(len(name) for name in (*names, corner))
    columns = [max(8, len(name)) for name in names]
    lines = [corner.ljust(width) + "".join(f"  {name:>{wide}}" for name, wide in zip(names, columns, strict=True))]
    for name, row in zip(names, matrix, strict=True):
        cells = "".join(f"  {count:>{wide}}" for count, wide in zip(row, columns, strict=True))
        lines.append(name.ljust(width) + cells)
    return lines
