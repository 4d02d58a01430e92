"""Does a column, such as the hospital, tell the label? A column that tells it without fail is the class itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.audit.findings import NOTE, WARNING, ColumnProbe, Finding
from xfeat.featurize.audit.neighbours import sample_rows
from xfeat.featurize.audit.probing import has_enough_groups, out_of_fold, score
from xfeat.featurize.audit.shortcuts import is_strong
from xfeat.featurize.audit.thresholds import THRESHOLDS
from xfeat.featurize.cache.extra import ExtraColumn
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.columns.summary import column_lines
from xfeat.featurize.text import count_of, listed, printable

_QUANTILES = 10
_ALL_IMAGES, _FEWEST_IMAGES = 100_000, 1_000  # of all columns together, and of each: 200 columns take half a minute
_FEW_VALUES = 20  # of a number or date that can be the class


def probe_columns(cache: FeatureCache) -> list[ColumnProbe]:
    """Measure each column that is no text, by images of the groups (patients) that the model has not seen."""
    asked = [name for name in cache.extra if cache.extra[name].kind in _EVIDENCE]
    images = min(THRESHOLDS.probe_images, max(_FEWEST_IMAGES, _ALL_IMAGES // max(1, len(asked))))
    return [_probe(cache, name, cache.extra[name], images) for name in asked]


def column_findings(cache: FeatureCache, probes: Sequence[ColumnProbe]) -> Iterator[Finding]:
    """Report columns that are the class or predict it, and what the columns hold."""
    same = [found.name for found in probes if found.is_class]
    if same:
        yield Finding(
            kind="columns.class",
            severity=WARNING,
            title=f"{listed(same)}: each value has images of one class only, so that the column is the class",
            meaning="If it is not the label by another name, no split of this data can tell a model that recognises "
            "the finding from one that recognises the column.",
            fix="collect all classes for each of its values, or test on images where it does not tell the class",
        )
    strong = [found for found in probes if found.probe and is_strong(found.probe) and not found.is_class]
    if strong:
        worst_first = sorted(strong, key=lambda found: -found.probe.best if found.probe else 0)
        yield Finding(
            kind="columns.shortcut",
            severity=WARNING,
            title="The label can be predicted from a column alone: " + listed(map(_measured, worst_first)),
            meaning="A model that recognises it in the images (a hospital by its frame, an age by the bones) is right "
            "for the wrong reason, and wrong where the two do not go together.",
            fix="compare the results per value of the column, and test on images of another hospital",
        )
    if cache.extra:
        best_first = sorted(probes, key=lambda found: -found.probe.best if found.probe else 0)
        lines = column_lines(cache.extra, cache.columns.group, "more columns: see xfeat info --json")
        yield Finding(
            kind="columns.known",
            severity=NOTE,
            title=f"The images have {count_of(len(cache.extra), 'further column')}",
            meaning="How well each predicts the label of unseen groups (patients): AUC, its 95 % interval; chance is "
            f"0.5. With {len(probes)} columns asked, one in twenty can seem to by chance.",
            fix="nothing, unless a column should not tell the label",
            lines=[*(f"label from {_measured(found)}" for found in best_first), *lines],
        )


def _measured(found: ColumnProbe) -> str:
    name = printable(found.name)
    if found.probe is None:
        return f"{name}: not measured, too few groups with a value in two classes"
    low, high = found.interval
    verdict = "" if low > 0.5 else ", no more than chance"
    best = max(found.probe.auc, key=found.probe.auc.__getitem__)
    of = f" for {printable(best)}" if len(found.probe.auc) > 1 else ""
    return f"{name}: {found.probe.best:.3f}{of} ({low:.3f} to {high:.3f}{verdict})"


def _probe(cache: FeatureCache, name: str, column: ExtraColumn, images: int) -> ColumnProbe:
    labels = cache.columns.label
    rows = np.flatnonzero(has_enough_groups(np.where(column.known, labels, -1), cache.group_keys))
    is_class = len(rows) > 0 and _tells_without_fail(column, rows, labels, cache.group_keys)
    rows = sample_rows(rows, images)
    rows = rows[has_enough_groups(labels[rows], cache.group_keys[rows])]
    if not len(rows):
        return ColumnProbe(name=name, probe=None)
    codes, own = np.unique(labels[rows], return_inverse=True)
    names = [cache.class_names[code] for code in codes]
    evidence = _EVIDENCE[column.kind](column.values[rows])
    predicted = out_of_fold(evidence, own, cache.group_keys[rows], balanced=True)
    probe = score(name, f"the column {name} alone", own, names, predicted)
    margin = 2 * probe.standard_error
    interval = (max(0.0, probe.best - margin), min(1.0, probe.best + margin))
    return ColumnProbe(name=name, probe=probe, interval=interval, is_class=is_class)


def _tells_without_fail(
    column: ExtraColumn, rows: NDArray[np.intp], labels: NDArray[np.int32], groups: NDArray[np.int64]
) -> bool:
    """Tell whether every value has one class only, where a value that only one group has cannot say so."""
    values, numbers = np.unique(column.values[rows], return_inverse=True)
    if column.kind != "category" and len(values) > _FEW_VALUES:
        return False
    pairs = np.unique(np.stack([numbers, labels[rows]]), axis=1)
    per_value = np.bincount(np.unique(np.stack([numbers, groups[rows]]), axis=1)[0])
    shared = per_value[numbers] > 1
    return pairs.shape[1] == len(values) and bool(shared.mean() > 0.5)


def _of_numbers(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return evidence (n, d): the value itself, and between which tenths it lies, for what is no straight line."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, _QUANTILES + 1)[1:-1]))
    return np.column_stack([values, *(values > edge for edge in edges)])


def _of_categories(values: NDArray[np.int32]) -> NDArray[np.float64]:
    return np.equal(values[:, None], np.unique(values)).astype(np.float64)


_EVIDENCE = {
    "number": _of_numbers,
    "date": lambda values: _of_numbers(values.astype("datetime64[D]").astype(np.float64)),
    "category": _of_categories,
}
