"""Joins a table of further columns to the images: by path or base name, or by group. What does not join is said."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from xfeat.featurize.datasets.column_choice import MISSING, ColumnChoice
from xfeat.featurize.datasets.file_lookup import find_files
from xfeat.featurize.datasets.image_files import ListedImage, Listing, TableColumn
from xfeat.featurize.datasets.manifest import USE_SPLITS, contradiction, refuse_rows
from xfeat.featurize.datasets.structure import splits_of
from xfeat.featurize.datasets.tables import Table, TableRow, name_lines, read_table
from xfeat.featurize.errors import DataError
from xfeat.featurize.text import listed, quote
from xfeat.featurize.urls import Root

logger = logging.getLogger(__name__)


def join_metadata(listing: Listing, path: Path, root: Root, choice: ColumnChoice) -> Listing:
    """Add the columns of a table to the images.

    A column ``label`` or ``split`` gives the images theirs if none has any, and must agree otherwise. One of groups
    fills in those that are unknown.

    Args:
        listing: the images.
        path: of the table; by its usual names, one column has the images or the groups.
        root: the folder that paths in the table are relative to.
        choice: what the user says of the columns.

    Raises:
        DataError: if the table cannot be read, nothing joins, or it contradicts itself or the images' labels.
    """
    table, rows = _join(path, listing.images, root, choice)
    images = listing.images
    for column in ("label", "split"):
        if column in table.columns:
            images = _with_same(table, images, rows, column)
    if "path" in table.columns and "group" in table.columns:
        images = _with_groups(table, images, rows)
    listing = replace(listing, images=images, headers=(*listing.headers, *table.header))
    return _with_columns(listing, table, rows)


_Rows = Sequence[TableRow | None]
"""The row of each image."""


# Which row belongs to which image


def _join(path: Path, images: Sequence[ListedImage], root: Root, choice: ColumnChoice) -> tuple[Table, _Rows]:
    """Read the table and find each image's row, by path if any joins so, else by group."""
    said: set[str] = set()
    table = _read(path, ("path", "group"), choice, said)
    if not table.columns.keys() & {"path", "group"}:
        raise DataError(
            "no column names images or groups",
            path=path,
            expected="a column called path, filename, image_id or the like, or group, patient_id or the like",
            found=listed(table.header) or "an empty file",
            fix="name it: --columns path=NAME or --columns group=NAME",
        )
    if "path" in table.columns and any(found := _by_path(table, images, root)):
        return table, _one_row_each(table, images, found, "path")
    if "group" in table.columns:
        table = _read(path, ("group",), choice, said)  # a column called "name" is none of paths, then
        if any(found := _by_group(table, images)):
            return table, _one_row_each(table, images, found, "group")
    group = next((image.group for image in images if image.group), "")
    raise DataError(
        "none of its rows belongs to an image",
        path=path,
        expected=f"paths such as {quote(images[0].path)}" + (f", or groups such as {quote(group)}" if group else ""),
        found=name_lines([(row.line, row.path or row.group) for row in table.rows]),
        fix="check which column names the images: --columns path=NAME, or --columns group=NAME with --groups",
    )


def _read(path: Path, keys: Sequence[str], choice: ColumnChoice, said: set[str]) -> Table:
    return read_table(path, (), keys, literal=("label", "split"), choice=choice, said=said)


_Found = list[Sequence[int]]
"""The images that each row belongs to; several of a path that is ambiguous."""


def _by_path(table: Table, images: Sequence[ListedImage], root: Root) -> _Found:
    numbers = {image.path: number for number, image in enumerate(images)}
    named = [row.path or "\0" for row in table.rows]
    found = find_files(named, root, numbers.__contains__, lambda: numbers)
    return [[numbers[path] for path in paths] for paths in found]


def _by_group(table: Table, images: Sequence[ListedImage]) -> _Found:
    keys = [row.group for row in table.rows]
    members: dict[str, list[int]] = {}
    for number, image in enumerate(images):
        if image.group:
            members.setdefault(image.group, []).append(number)
    counts, written = Counter(map(_without_zeros, members)), set(keys)
    shorter = {short: group for group in members if counts[short := _without_zeros(group)] == 1}
    other = {key: shorter.get(_without_zeros(key), "") for key in keys if key and key not in members}
    other = {key: group for key, group in other.items() if group and group not in written}
    if other:
        examples = listed(f"{quote(key)} as {quote(group)}" for key, group in other.items())
        logger.warning("%s: groups are found with or without leading zeros: %s", table.path, examples)
    return [members.get(key) or members.get(other.get(key, ""), []) for key in keys]


def _without_zeros(group: str) -> str:
    """Return what remains of ``007`` in a spreadsheet that takes it for a number."""
    whole = group.removesuffix(".0")
    return whole.lstrip("0") or "0" if whole.isdecimal() else group


def _one_row_each(table: Table, images: Sequence[ListedImage], found: _Found, column: str) -> _Rows:
    """Return each image's row; a second row fills in what the first does not know, and must not contradict it.

    Say, in one message, which rows have no image, which images have no row, and which rows fit several images.
    """
    rows: list[TableRow | None] = [None] * len(images)
    strange, doubtful = [], []
    for row, numbers in zip(table.rows, found, strict=True):
        key = getattr(row, column)
        if not numbers:
            strange.append((row.line, key))
        elif column == "path" and len(numbers) > 1:
            doubtful.append((row.line, key))
        else:
            for number in numbers:
                known = rows[number]
                rows[number] = row if known is None else _merged(table, known, row, key)
    without = [image.path for image, row in zip(images, rows, strict=True) if row is None]
    parts = []
    if strange:
        parts.append(f"rows without an image: {len(strange)} of {len(table.rows)} ({name_lines(strange)})")
    if doubtful:
        parts.append(f"left out, because several images fit: {name_lines(doubtful)}")
    if without:
        parts.append(f"images without a row: {len(without)} of {len(images)} ({listed(without)})")
    log = logger.warning if parts else logger.info
    said = ": " * bool(parts) + "; ".join(parts)
    log("%s: joined by %s (column %s)%s", table.path, column, table.columns[column], said)
    return rows


def _merged(table: Table, one: TableRow, other: TableRow, of: str) -> TableRow:
    merged = _filled(one, other)
    if (again := _filled(other, merged))[2:] != merged[2:]:
        raise contradiction(table, merged, again, of)
    return merged


def _filled(row: TableRow, other: TableRow) -> TableRow:
    """Return a row with the values of another one where it has none."""
    pairs = zip((*row[2:5], *row.further), (*other[2:5], *other.further), strict=True)
    label, split, group, *further = (second if is_missing(first) else first for first, second in pairs)
    return TableRow(row.line, row.path, label, split, group, tuple(further))


def is_missing(text: str) -> bool:
    """Tell whether a text means that a value is unknown."""
    return not text or text.casefold() in MISSING


# What a row gives an image


def _with_same(table: Table, images: list[ListedImage], rows: _Rows, column: str) -> list[ListedImage]:
    """Return images with the labels or splits of their rows; refuse those that contradict what the images have."""
    fix = f"give the column another name: --columns finding={table.columns[column]}"
    values = [getattr(row, column) if row else "" for row in rows]
    if column == "split":
        values, unknown = splits_of(table.path, column, values)
        wrong = [row for at in unknown if (row := rows[at])]
        refuse_rows(table, wrong, "split", "has an unknown split", f"{USE_SPLITS}, or {fix}")
    if not any(getattr(image, column) for image in images):
        new: list[dict[str, Any]] = [{column: value} for value in values]
        return [image._replace(**value) for image, value in zip(images, new, strict=True)]
    if differ := [
        f"{quote(image.path)}: {quote(getattr(image, column))}, in the table {quote(value)}"
        for image, value in zip(images, values, strict=True)
        if value and getattr(image, column).casefold() != value.casefold()
    ]:
        raise DataError(
            f"column {quote(table.columns[column])} contradicts the {column} of {len(differ)} of {len(images)} images",
            path=table.path,
            expected=f"the same {column}s, or none",
            found=listed(differ[:3], "; "),
            fix=f"correct it, or {fix}",
        )
    return images


def _with_groups(table: Table, images: list[ListedImage], rows: _Rows) -> list[ListedImage]:
    """Return images with the groups of their rows where they have none; others stay."""
    pairs = [(image, row.group if row else "") for image, row in zip(images, rows, strict=True)]
    if other := [image.path for image, group in pairs if group and image.group not in ("", group)]:
        what = f"images with another group, which stays: {len(other)}"
        logger.warning("%s: column %s: %s (%s)", table.path, table.columns["group"], what, listed(other))
    return [image._replace(group=image.group or group) for image, group in pairs]


def _with_columns(listing: Listing, table: Table, rows: _Rows) -> Listing:
    """Return a listing with the table's columns; one that is there already is filled in if the two agree."""
    texts = [list(image.further) for image in listing.images]
    names = [column.name.casefold() for column in listing.columns]
    columns = list(listing.columns)
    for at, name in enumerate(table.further):
        pairs = [(has, row.further[at] if row else "") for has, row in zip(texts, rows, strict=True)]
        if name.casefold() in names:
            place = names.index(name.casefold())
            differ = sum(not (is_missing(has[place]) or is_missing(new) or has[place] == new) for has, new in pairs)
            if not differ:
                for has, new in pairs:
                    has[place] = new if is_missing(has[place]) else has[place]
                continue
            numbered = (f"{name}_{number}" for number in count(2))
            name, other = next(free for free in numbered if free.casefold() not in names), columns[place]
            what = f"differs from that of {other.source} in {differ} images, and is called {name} here"
            logger.warning("%s: column %s %s", table.path, other.name, what)
        names.append(name.casefold())
        columns.append(TableColumn(name, table.path.name))
        for has, new in pairs:
            has.append(new)
    images = [image._replace(further=tuple(has)) for image, has in zip(listing.images, texts, strict=True)]
    return replace(listing, images=images, columns=tuple(columns))
