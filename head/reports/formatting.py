"""How metrics are written as text, on the terminal and in reports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, TypeVar

from xfeat.featurize.system.streams import text_width
from xfeat.featurize.text import MAX_LISTED, aligned, columns_of, printable, shortened

T = TypeVar("T")


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


def class_lines(matrix: Sequence[Sequence[int]], classes: Mapping[str, Mapping[str, Any]], *, all_in: str) -> list[str]:
    """Write a confusion matrix, and sensitivity and specificity per class.

    If the matrix is too large for the terminal, the most frequent confusions stand in its place; of more than ten
    classes, only the hardest are shown.

    Args:
        matrix: counts (C, C); rows are true classes, columns are predicted ones.
        classes: C classes, from :func:`xfeat.head.evaluation.metrics.classification_metrics`.
        all_in: the file or option that has all of it.
    """
    names = list(classes)
    lines = _confusion_table(names, matrix) if len(names) <= MAX_LISTED else []
    complete = bool(lines) and columns_of(lines) <= text_width()
    if not complete:
        lines = _confusion_list(names, matrix)
    shown = hardest_classes(classes)
    if len(shown) < len(names):
        lines.append(f"lowest sensitivity of {len(names)} classes:")
    lines += [
        f"{printable(name)}: sensitivity {percent(classes[name]['sensitivity'])}, "
        f"specificity {percent(classes[name]['specificity'])}"
        for name in shown
    ]
    return lines if complete else [*lines, f"confusion matrix and all classes: {all_in}"]


def hardest_classes(classes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the ten classes of the lowest sensitivity, or all in their order if there are no more."""
    if len(classes) <= MAX_LISTED:
        return list(classes)
    tested = [name for name, row in classes.items() if row["sensitivity"] is not None]
    return sorted(tested, key=lambda name: classes[name]["sensitivity"])[:MAX_LISTED]


def collapsed_rows(rows: Iterable[tuple[float, T]]) -> list[tuple[str, T]]:
    """Write rows of thresholds, in their order: neighbours with the same figures are one, ``0.10 to 0.40``."""
    same = [(figures, [threshold for threshold, _ in each]) for figures, each in groupby(rows, key=itemgetter(1))]
    return [
        (f"{found[0]:.2f}" if len(found) == 1 else f"{found[0]:.2f} to {found[-1]:.2f}", figures)
        for figures, found in same
    ]


def threshold_line(metrics: Mapping[str, Any]) -> str:
    """Write the result of :func:`xfeat.head.evaluation.operating_point.threshold_metrics`."""
    names = {"sensitivity": "sensitivity", "specificity": "specificity", "ppv": "PPV", "npv": "NPV"}
    return ", ".join(f"{name} {with_interval(**metrics[key])}" for key, name in names.items())


def points(share: float) -> str:
    """Write a difference of proportions in percentage points, with its sign: ``−2.1``."""
    return f"{100 * share:+.1f}".replace("-", "−")


def _confusion_table(names: Sequence[str], matrix: Sequence[Sequence[int]]) -> list[str]:
    shown = [shortened(name) for name in names]
    rows = [[name, *map(str, counts)] for name, counts in zip(shown, matrix, strict=True)]
    return aligned([["true \\ predicted", *shown], *rows])


def frequent_confusions(names: Sequence[str], matrix: Sequence[Sequence[int]]) -> list[tuple[str, str, int]]:
    """Return the ten most frequent confusions: true class, predicted class, number of images."""
    pairs = [
        (names[true], names[predicted], count)
        for true, counts in enumerate(matrix)
        for predicted, count in enumerate(counts)
        if count and predicted != true
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:MAX_LISTED]


def _confusion_list(names: Sequence[str], matrix: Sequence[Sequence[int]]) -> list[str]:
    wrong = sum(map(sum, matrix)) - sum(counts[place] for place, counts in enumerate(matrix))
    if not wrong:
        return ["every image was classified correctly"]
    table = [
        [shortened(true), "->", shortened(predicted), str(count)]
        for true, predicted, count in frequent_confusions(names, matrix)
    ]
    return [
        f"most frequent confusions of {wrong}, as true -> predicted:",
        *(f"  {line}" for line in aligned(table, left=(0, 1, 2))),
    ]


def accuracy_line(name: str, accuracy: Mapping[str, Any]) -> str:
    """Return the accuracy of a cross-validation in words."""
    return (
        f"{name}: {percent(accuracy['mean'])} ± {100 * accuracy['std']:.1f} over the folds, "
        f"95 % confidence interval {interval(accuracy['interval'])}"
    )
