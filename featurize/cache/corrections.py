"""Corrections of a data set, from a table of paths and actions: an image is excluded, gets another class or group.

Features stay as they are: without the table, the next run has the images back.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.cache.columns import EXCLUDE, GROUP, RELABEL, Correction, describe_corrections
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.datasets.file_lookup import find_files
from xfeat.featurize.datasets.layouts import MAX_NAME_BYTES, NO_LABEL, NO_SPLIT, SPLITS, Dataset
from xfeat.featurize.datasets.tables import Table, TableRow, read_table
from xfeat.featurize.errors import DataError
from xfeat.featurize.text import listed, quote
from xfeat.featurize.urls import Root

logger = logging.getLogger(__name__)

ACTIONS = (EXCLUDE, RELABEL, GROUP)
_COLUMNS = ("action", "value", "reason")


class _Rows(NamedTuple):
    """Of N images: paths, labels and splits as in a cache, and groups."""

    path: Sequence[str]
    label: NDArray[Any]
    split: NDArray[Any]
    group: Sequence[str]


def correct_dataset(dataset: Dataset, file: Path) -> Dataset:
    """Return a data set with the labels and splits that a table of corrections gives its images.

    Groups are corrected when all groups are known: :func:`xfeat.featurize.columns.gather.gather`.

    Raises:
        DataError: as :func:`correct_cache`.
    """
    entries = dataset.entries
    rows = _Rows(
        [entry.path for entry in entries],
        np.array([entry.label for entry in entries], np.int32),
        np.array([entry.split for entry in entries], np.uint8),
        [entry.group for entry in entries],
    )
    corrections = _read(file, rows, dataset.class_names, dataset.root)
    rows = _corrected(rows, dataset.class_names, corrections, file)
    _say(file, corrections)
    values = zip(entries, rows.label.tolist(), rows.split.tolist(), strict=True)
    corrected = [entry._replace(label=label, split=split) for entry, label, split in values]
    return replace(dataset, entries=corrected, corrections=tuple(corrections))


def correct_cache(cache: FeatureCache, file: Path) -> FeatureCache:
    """Return a cache with the labels, splits and groups that a table of corrections gives its images.

    The file of the cache stays as it is. Excluded images have neither label nor split.

    Args:
        cache: the features.
        file: with the columns ``path``, ``action`` and, where needed, ``value``; ``reason`` is for people.

    Raises:
        DataError: if the table cannot be read, a row cannot be applied or contradicts another, or a class or split
            would be empty; one error names all such rows.
    """
    rows = _rows_of(cache)
    corrections = _read(file, rows, cache.class_names, Path(cache.data_root))
    rows = _corrected(rows, cache.class_names, corrections, file)
    _say(file, corrections)
    return _with_rows(cache, rows, corrections)


def apply_corrections(cache: FeatureCache, corrections: Sequence[Correction]) -> FeatureCache:
    """Return a cache with corrections that were read before, such as those of a run."""
    if all(correction in cache.corrections for correction in corrections):
        return cache
    rows = _corrected(_rows_of(cache), cache.class_names, corrections, cache.path)
    return _with_rows(cache, rows, corrections)


def _say(file: Path, corrections: Sequence[Correction]) -> None:
    logger.info("%s: %s", file, describe_corrections(corrections) or "no corrections")


def _rows_of(cache: FeatureCache) -> _Rows:
    own = cache.columns
    return _Rows(own.path, np.asarray(own.label), np.asarray(own.split), own.group)


def _with_rows(cache: FeatureCache, rows: _Rows, corrections: Sequence[Correction]) -> FeatureCache:
    return replace(
        cache,
        columns=replace(cache.columns, label=rows.label, split=rows.split, group=rows.group),
        stored_columns=cache.stored_columns or cache.columns,
        corrections=tuple(dict.fromkeys([*cache.corrections, *corrections])),
    )


def _corrected(rows: _Rows, class_names: Sequence[str], corrections: Sequence[Correction], file: Path) -> _Rows:
    """Apply corrections; refuse to leave a class or a split without images."""
    number = {path: at for at, path in enumerate(rows.path)}
    label, split, group = rows.label.copy(), rows.split.copy(), list(rows.group)
    for path, action, value, _ in corrections:
        row = number.get(path)
        if row is None:
            continue
        if action == EXCLUDE:
            label[row], split[row] = NO_LABEL, NO_SPLIT
        elif action == RELABEL:
            label[row] = class_names.index(value)
        else:
            group[row] = value
    empty = [
        f"class {quote(class_names[code])}" for code in np.setdiff1d(rows.label[rows.label != NO_LABEL], label).tolist()
    ]
    used = rows.split[(rows.label != NO_LABEL) & (rows.split != NO_SPLIT)]
    empty += [f"split {SPLITS[code]}" for code in np.setdiff1d(used, split[label != NO_LABEL]).tolist()]
    if empty:
        raise DataError(
            f"the corrections leave no image of {listed(empty)}",
            path=file,
            expected="at least one image of each class and split",
            found=describe_corrections(corrections),
            fix="remove some of these corrections; to leave out a whole class: xfeat featurize DATA --classes A,B",
        )
    return _Rows(rows.path, label, split, group)


# From the table to corrections


def _read(file: Path, rows: _Rows, class_names: Sequence[str], root: Root) -> list[Correction]:
    table = read_table(file, ("path",))
    cells = _cells(table)
    number = {path: at for at, path in enumerate(rows.path)}
    found = find_files([row.path or "\0" for row in table.rows], root, number.__contains__, lambda: number)
    classes = {_key(name): name for name in class_names}
    problems: list[str] = []
    first: dict[tuple[str, str], tuple[int, Correction]] = {}
    gone: list[TableRow] = []
    for row, paths, (action, value, reason) in zip(table.rows, found, cells, strict=True):
        problem = _problem(row, action.casefold(), value, classes, paths)
        if problem:
            problems.append(f"line {row.line}: {problem}")
        elif not paths:
            gone.append(row)
        else:
            action = action.casefold()
            value = classes[_key(value)] if action == RELABEL else value
            one = Correction(paths[0], action, value, reason)
            _, known = first.setdefault((one.path, action), (row.line, one))
            if known.value != value:
                problems.append(_contradiction((row.line, one), first[one.path, action]))
    for (path, action), (line, one) in first.items():
        if action == EXCLUDE:
            others = [first[path, other] for other in (RELABEL, GROUP) if (path, other) in first]
            problems += [_contradiction((line, one), other) for other in others]
    if problems:
        raise DataError(
            f"{len(problems)} correction{'s' * (len(problems) > 1)} cannot be applied",
            path=file,
            expected=f"{', '.join(ACTIONS)}; classes: {listed(class_names) or 'none'}",
            found=listed(problems, "; "),
            fix="correct or remove these lines",
        )
    if gone and len(gone) == len(table.rows):
        raise DataError(
            "none of the corrections is of an image that is here",
            path=file,
            expected=f"paths such as {quote(rows.path[0])}",
            found=listed(f"line {row.line}: {quote(row.path)}" for row in gone),
            fix="if the files are gone, leave out --corrections; else correct the paths",
        )
    corrections = [one for _, one in first.values()]
    already = [one.path for one in corrections if _is_already(one, rows, number[one.path], class_names)]
    _warn(file, gone, already)
    return corrections


def _cells(table: Table) -> list[tuple[str, str, str]]:
    """Return action, value and reason of each row; other columns are of no matter."""
    names = [name.casefold() for name in table.further]
    if "action" not in names:
        raise DataError(
            "no column is called action",
            path=table.path,
            expected="the columns path,action,value,reason",
            found=listed(table.header) or "an empty file",
            fix="name the columns in the first line; xfeat audit writes a page that makes such tables",
        )
    places = [names.index(name) if name in names else None for name in _COLUMNS]
    rows = [["" if at is None else row.further[at].strip() for at in places] for row in table.rows]
    return [(action, value, reason) for action, value, reason in rows]


def _problem(row: TableRow, action: str, value: str, classes: dict[str, str], paths: Sequence[str]) -> str:
    if not row.path:
        return "no path"
    if action not in ACTIONS:
        return f"unknown action {quote(action)}" if action else f"no action for {quote(row.path)}"
    if action == EXCLUDE and value:
        return f"{EXCLUDE} takes no value, but there is {quote(value)}"
    if action != EXCLUDE and not value:
        return f"{action} needs a value"
    if action == RELABEL and _key(value) not in classes:
        return f"unknown class {quote(value)}"
    if action == GROUP and len(value.encode("utf-8", "surrogateescape")) > MAX_NAME_BYTES:
        return "the name of the group is too long"
    return f"{quote(row.path)} can mean {len(paths)} images" if len(paths) > 1 else ""


def _contradiction(*rows: tuple[int, Correction]) -> str:
    (line, one), (again, other) = sorted(rows)
    actions = " and ".join(f"{each.action} {quote(each.value)}".strip() for each in (one, other))
    return f"lines {line} and {again} both correct {quote(one.path)}: {actions}"


def _is_already(one: Correction, rows: _Rows, row: int, class_names: Sequence[str]) -> bool:
    label = rows.label[row]
    if one.action == RELABEL:
        return bool(label != NO_LABEL and class_names[label] == one.value)
    return one.action == GROUP and rows.group[row] == one.value


def _warn(file: Path, gone: list[TableRow], already: list[str]) -> None:
    parts = []
    if gone:
        parts.append(
            f"not among the images: {len(gone)} ({listed(f'line {row.line}: {quote(row.path)}' for row in gone)})"
        )
    if already:
        parts.append(f"already so in the data: {len(already)} ({listed(already)})")
    if parts:
        logger.warning("%s: corrections that change nothing: %s", file, "; ".join(parts))


def _key(name: str) -> str:
    """Return what names of classes are compared by."""
    return unicodedata.normalize("NFC", name).casefold()
