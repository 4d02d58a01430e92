"""Does a model work alike for everybody? Figures per value of each further column, and the largest gaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.cache.extra import ExtraColumn
from xfeat.featurize.specs import require
from xfeat.featurize.text import listed
from xfeat.head.evaluation.clustered import Estimate, difference
from xfeat.head.evaluation.study import Cases, figures_among

Bins = Mapping[str, Sequence[float]]
"""Column to the upper ends of its bins; numbers above the last one have a bin of their own."""

MOST_VALUES = 12
# Fewer patients of a class say little: such figures are shown, marked, and not compared.
FEW_PATIENTS = 10
_MOST_PLAIN_NUMBERS = 5  # a number with no more values is taken as it is, as codes and stages are
_SIGNIFICANCE = 0.05
_SINGLE_CLASS = "each value has images of one class only: it cannot be told apart from the class"


def check_bins(bins: Bins | None, columns: Mapping[str, ExtraColumn]) -> None:
    """Raise a SpecError unless ``bins`` are of columns of numbers."""
    numbers = [name for name, column in columns.items() if column.kind == "number"] if bins else []
    for name, ends in (bins or {}).items():
        require(name in numbers, "no column of numbers with this name", expected=listed(numbers) or "none", found=name)
        ascending = all(low < high for low, high in pairwise(ends)) and len(ends) > 0 and bool(np.isfinite(ends).all())
        require(ascending, f"bad bins of {name}", expected="ascending numbers", found=listed(map(str, ends)))


@dataclass(frozen=True)
class Values:
    """A column, divided into a few values.

    Attributes:
        names: of the values; the last ones may be ``other values`` and ``unknown``, which are not compared.
        codes: int64 (n,), index into ``names``.
        compared: how many of ``names`` are compared.
        note: why it is not divided, or what is unusual about it; may be empty.
    """

    names: list[str]
    codes: NDArray[np.int64]
    compared: int
    note: str = ""


def divided(column: ExtraColumn, rows: NDArray[np.int64], bins: Sequence[float] | None = None) -> Values:
    """Divide the rows of a column by its values; numbers and dates into quartiles, or at the given ``bins``."""
    if column.kind not in ("category", "number", "date"):
        return _undivided(len(rows), "several labels per image" if column.kind == "labels" else "free text")
    known, texts = column.known[rows], np.array(column.texts(), object)[rows]
    unknown = int((~known).sum())
    found, places, counts = np.unique(texts[known].astype(str), return_inverse=True, return_counts=True)
    if len(found) == 0:
        return _undivided(len(rows), "unknown for every image")
    if len(found) == 1 and not unknown:
        return _undivided(len(rows), f"the same for every image: {found[0]}")
    codes, note = np.full(len(rows), -1), ""
    if column.kind != "category" and (bins is not None or len(found) > _MOST_PLAIN_NUMBERS):
        names, codes[known] = _quantiles(column, column.values[rows][known], bins)
    elif len(found) == known.sum() and len(found) > MOST_VALUES:
        return _undivided(len(rows), "another value for every image")
    else:
        order = np.argsort(-counts, kind="stable")
        shown = order if len(found) <= MOST_VALUES else order[: MOST_VALUES - 1]
        shown = shown[np.argsort(found[shown].astype(float if column.kind == "number" else str))]
        place_of = np.full(len(found), len(shown))
        place_of[shown] = np.arange(len(shown))
        names, codes[known] = [str(found[place]) for place in shown], place_of[places]
    compared = len(names)
    if (codes == compared).any():
        names.append(f"{len(found) - compared} other values")
        note = f"{len(found)} values: the {compared} most frequent are compared"
    if unknown:
        codes[~known] = len(names)
        names.append("unknown")
        note = "; ".join(filter(None, [note, f"unknown for {100 * unknown / len(rows):.0f} % of the images"]))
    return Values(names, codes, compared, note)


def _undivided(count: int, note: str) -> Values:
    return Values([], np.full(count, -1), 0, f"not divided: {note}")


def _quantiles(
    column: ExtraColumn, values: NDArray[Any], bins: Sequence[float] | None
) -> tuple[list[str], NDArray[np.int64]]:
    numbers = values.astype("M8[D]").astype(np.int64) if column.kind == "date" else values
    ends = np.unique(np.quantile(numbers, (0.25, 0.5, 0.75), method="inverted_cdf") if bins is None else bins)
    ends = ends[(ends >= numbers.min()) & (ends < numbers.max())]
    codes = np.searchsorted(ends, numbers, side="left")
    used, codes = np.unique(codes, return_inverse=True)
    texts = [str(np.datetime64(int(end), "D")) if column.kind == "date" else f"{end:g}" for end in ends]
    low = [f"over {text} " for text in texts]
    names = [
        ("" if not place else low[place - 1]) + (f"to {texts[place]}" if place < len(texts) else "") for place in used
    ]
    return [name.strip() or "all" for name in names], codes.astype(np.int64)


def subgroup_figures(
    cases: Cases, columns: Mapping[str, ExtraColumn], rows: NDArray[np.int64], bins: Bins | None = None
) -> dict[str, Any]:
    """Measure each value of each column, and compare the values with one another.

    Args:
        cases: the predicted images.
        columns: further columns of their cache.
        rows: int64 (n,), the rows of the cache that ``cases`` are.
        bins: of numbers that are not to be divided into quartiles.

    Returns:
        ``class``: whose sensitivity and specificity these are, or ``None`` for more than two classes without a positive
        one; ``comparisons``: number of pairs of values and figures that were compared; and ``columns``: of each its
        ``kind``, ``note``, ``same_as_class`` (whether each value has images of one class only), ``values`` (``value``,
        ``images``, ``patients``, ``positives``, the figures, and ``few``:
        those from fewer than ten patients) and ``gaps``: per figure the largest difference, ``high`` and ``low``, its
        95 % ``interval``, whether it is ``more_than_chance`` after Bonferroni's correction for all comparisons, and how
        many other pairs of values are.
    """
    parts = {}
    for name, column in columns.items():
        values = divided(column, rows, (bins or {}).get(name))
        parts[name] = column, values, [_cell(cases, values.codes == code) for code in range(len(values.names))]
    pairs = {
        name: {figure: _pairs(cells[: values.compared], figure) for figure in cases.measures}
        for name, (_, values, cells) in parts.items()
    }
    comparisons = sum(len(found) for each in pairs.values() for found in each.values())
    z = NormalDist().inv_cdf(1 - _SIGNIFICANCE / (2 * max(1, comparisons)))
    return {
        "class": None if cases.studied is None else cases.class_names[cases.studied],
        "comparisons": comparisons,
        "columns": {
            name: {
                "kind": column.kind,
                "note": "; ".join(filter(None, [values.note, _SINGLE_CLASS if _is_class(values, cells) else ""])),
                "same_as_class": _is_class(values, cells),
                "values": [{"value": text, **cell.to_dict()} for text, cell in zip(values.names, cells, strict=True)],
                "gaps": {
                    figure: _largest(values.names, cells, figure, found, z)
                    for figure, found in pairs[name].items()
                    if found
                },
            }
            for name, (column, values, cells) in parts.items()
        },
    }


@dataclass(frozen=True)
class _Cell:
    images: int
    patients: int
    positives: int | None
    single_class: bool
    estimates: dict[str, Estimate]
    few: list[str]

    def to_dict(self) -> dict[str, Any]:
        counts = {"images": self.images, "patients": self.patients, "positives": self.positives, "few": self.few}
        return {**counts, **{name: found.to_dict() for name, found in self.estimates.items()}}


def _cell(cases: Cases, among: NDArray[np.bool_]) -> _Cell:
    estimates, patients, code = figures_among(cases, among), cases.patients, cases.studied
    images, total = int(among.sum()), len(np.unique(patients[among]))
    single = len(np.unique(cases.labels[among])) < 2
    if code is None:
        return _Cell(images, total, None, single, estimates, list(estimates) if total < FEW_PATIENTS else [])
    positive = cases.labels == code
    ill, well = (len(np.unique(patients[among & part])) for part in (positive, ~positive))
    fewest = {"sensitivity": ill, "specificity": well, "auc": min(ill, well), "slope": min(ill, well)}
    few = [name for name, number in fewest.items() if number < FEW_PATIENTS]
    return _Cell(images, total, int((positive & among).sum()), single, estimates, few)


def _pairs(cells: Sequence[_Cell], figure: str) -> list[tuple[int, int]]:
    usable = [
        place for place, cell in enumerate(cells) if figure not in cell.few and cell.estimates[figure].value is not None
    ]
    return list(combinations(usable, 2))


def _largest(
    names: Sequence[str], cells: Sequence[_Cell], figure: str, pairs: Sequence[tuple[int, int]], z: float
) -> dict[str, Any]:
    def value(place: int) -> float:
        found = cells[place].estimates[figure].value
        assert found is not None
        return found

    ordered = [(one, other) if value(one) >= value(other) else (other, one) for one, other in pairs]
    high, low = max(ordered, key=lambda pair: value(pair[0]) - value(pair[1]))
    upper, lower = cells[high].estimates[figure], cells[low].estimates[figure]
    clear = {
        (one, other)
        for one, other in ordered
        if (ends := difference(cells[one].estimates[figure], cells[other].estimates[figure], z)) and ends[0] > 0
    }
    return {
        "high": names[high],
        "low": names[low],
        "gap": value(high) - value(low),
        "interval": difference(upper, lower),
        "more_than_chance": (high, low) in clear,
        "others_more_than_chance": len(clear - {(high, low)}),
    }


def _is_class(values: Values, cells: Sequence[_Cell]) -> bool:
    compared = cells[: values.compared]
    return len(compared) > 1 and all(cell.single_class for cell in compared)
