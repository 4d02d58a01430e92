"""What a table says about images: their files, labels, splits and groups. What contradicts itself is refused."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from xfeat.featurize.datasets.column_choice import AS_WRITTEN, ROLES, ColumnChoice
from xfeat.featurize.datasets.file_lookup import find_files, is_outside, written_path
from xfeat.featurize.datasets.image_files import (
    LeftOut,
    ListedImage,
    Listing,
    TableColumn,
    choose_images,
    count_classes,
)
from xfeat.featurize.datasets.structure import splits_of, unify_spelling
from xfeat.featurize.datasets.tables import Table, TableRow, name_lines, read_table
from xfeat.featurize.errors import DataError
from xfeat.featurize.sources.folder import FolderSource
from xfeat.featurize.sources.image_source import ImageSource
from xfeat.featurize.text import count_of, quote
from xfeat.featurize.urls import is_url

logger = logging.getLogger(__name__)

USE_SPLITS = "use train, valid or test, or leave the value empty"
_NO_ADDRESS = "write paths relative to the table, and put the table beside the images, here or at their address"


def read_manifest(
    path: Path, choice: ColumnChoice = AS_WRITTEN, content: bytes | None = None, folder: ImageSource | None = None
) -> Listing:
    """Read a table with one image per row.

    Rows without a label are left out, unless no row has one. Rows whose file is missing stay, so that they are skipped
    or stop the run as other unreadable images do; if all are missing, the table is refused.

    Args:
        path: the file.
        choice: what the user says of its columns.
        content: of a table that is no file of this machine.
        folder: of the images, if it is not that of the table on this machine.

    Raises:
        DataError: if the table cannot be read, names files in no clear way, or contradicts itself; lines are named.
    """
    table = read_table(path, ("path", "label"), ("split", "group"), choice=choice, content=content)
    rows, left_out = _labelled(table)
    splits, unknown = splits_of(path, table.columns.get("split", ""), [row.split for row in rows])
    refuse_rows(table, [rows[at] for at in unknown], "split", "has an unknown split", USE_SPLITS)
    paths = _locate(table, rows, path.parent, folder)
    listed = [
        ListedImage(file, row.label, split, row.group, row.further)
        for file, row, split in zip(paths, rows, splits, strict=True)
    ]
    images, notes = unify_spelling(_once(table, rows, listed))
    used = {use: name for use, name in table.columns.items() if use != "split" or any(splits)}
    renamed = ", ".join(f"{use}: {name}" for use, name in used.items() if name.casefold() != use)
    rows_read = f"{count_of(len(images), 'row')} of {path.name}" + f" ({renamed})" * bool(renamed)
    return Listing(
        images,
        f"{rows_read}, {count_classes(images)}",
        left_out,
        [f"{path}: {note}" for note in notes],
        columns=tuple(TableColumn(name, path.name) for name in table.further),
        headers=tuple(table.header),
    )


def read_paths(
    path: Path, choice: ColumnChoice = AS_WRITTEN, content: bytes | None = None, folder: ImageSource | None = None
) -> tuple[list[str], list[str]]:
    """Read the images that a table names, one per row, whatever else it says of them; arguments as above.

    Returns:
        The file of each row, relative to the folder of the table, or its absolute path if it is elsewhere on this
        machine; if it is missing, the path as the table has it. Then the names of the columns.

    Raises:
        DataError: if the table cannot be read, has no rows, or names files in no clear way or none that is there.
    """
    table = read_table(path, ("path",), choice=choice, further=False, content=content)
    if not table.rows:
        raise DataError("no images found", path=path, found="no rows", fix="give each image a row")
    _refuse_without_path(table)
    outside = [is_outside(row.path, path.parent) for row in table.rows]
    inside = [row for row, other in zip(table.rows, outside, strict=True) if not other]
    located = iter(_locate(table, inside, path.parent, folder))
    return [row.path if other else next(located) for row, other in zip(table.rows, outside, strict=True)], table.header


def read_group_table(
    path: Path, images: Sequence[str], root: Path, choice: ColumnChoice = AS_WRITTEN, content: bytes | None = None
) -> tuple[dict[str, str], list[str]]:
    """Read a table of groups, such as patients.

    Args:
        path: the file.
        images: of the data set, relative to ``root``.
        root: the folder that paths in the table are relative to.
        choice: what the user says of the columns.
        content: of a file that is elsewhere, such as in an archive.

    Returns:
        Path to group, for the images that the table names; and the names of its columns.

    Raises:
        DataError: if the table cannot be read, a name fits several images, or an image has two groups.
    """
    table = read_table(path, ("path", "group"), choice=choice, further=False, content=content)
    found = _find(table, table.rows, root, set(images).__contains__, lambda: images)
    strangers = [row for row, file in zip(table.rows, found, strict=True) if not file]
    if len(strangers) < len(table.rows):
        _warn(table, strangers, f"no image of the data set in {len(strangers)} of {len(table.rows)} rows")
    rows = [row for row, file in zip(table.rows, found, strict=True) if file]
    listed = [ListedImage(file, "", "", row.group) for row, file in zip(rows, filter(None, found), strict=True)]
    return {image.path: image.group for image in _once(table, rows, listed)}, table.header


# Rows


def _named(rows: Iterable[TableRow], column: str) -> str:
    return name_lines([(row.line, getattr(row, column)) for row in rows])


def refuse_rows(table: Table, rows: Sequence[TableRow], column: str, what: str, fix: str) -> None:
    """Refuse rows of a table, if there are any.

    Raises:
        DataError: that names their lines, and what they have in a column.
    """
    if rows:
        raise DataError(f"line {rows[0].line} {what}", path=table.path, found=_named(rows, column), fix=fix)


def _warn(table: Table, rows: list[TableRow], what: str) -> None:
    if rows:
        logger.warning("%s: %s: %s", table.path, what, _named(rows, "path"))


def _refuse_without_path(table: Table) -> None:
    fix = f"enter an image in the column {table.columns['path']}, or remove the line"
    refuse_rows(table, [row for row in table.rows if not row.path], "label", "has no path", fix)


def _labelled(table: Table) -> tuple[list[TableRow], LeftOut]:
    """Divide the rows into those with one label, and what is left out for want of one."""
    _refuse_without_path(table)
    fix = "give each image one label, or remove these lines"
    refuse_rows(table, _with_several_labels(table.rows), "label", "has several labels in one cell", fix)
    without = [row for row in table.rows if not row.label]
    _warn(table, without, f"no label in {len(without)} of {len(table.rows)} rows")
    if len(without) == len(table.rows):
        return table.rows, []
    left_out = [(written_path(row.path), "no label in the table") for row in without]
    return [row for row in table.rows if row.label], left_out


def _with_several_labels(rows: list[TableRow]) -> list[TableRow]:
    """Return the rows such as ``cat|dog``, and ``cat, dog`` or ``['cat', 'dog']`` where these are classes elsewhere."""
    labels = {row.label for row in rows}
    parts_of = {label: [part.strip(" []'\"") for part in re.split(r"[,;|]", label)] for label in labels}
    single = {parts[0] for parts in parts_of.values() if len(parts) == 1}
    several = {label for label, parts in parts_of.items() if len(parts) > 1 and ("|" in label or single >= set(parts))}
    return [row for row in rows if row.label in several]


def _once(table: Table, rows: list[TableRow], images: list[ListedImage]) -> list[ListedImage]:
    """Return each file once; refuse two rows that say different things of one file."""
    first: dict[str, tuple[TableRow, ListedImage]] = {}
    again = []
    for row, image in zip(rows, images, strict=True):
        known, same = first.setdefault(image.path, (row, image))
        if same != image:
            raise contradiction(table, known, row, image.path)
        if known is not row:
            again.append(row)
    _warn(table, again, f"repeated images count once, rows: {len(again)}")
    return [image for _, image in first.values()]


def contradiction(table: Table, one: TableRow, other: TableRow, of: str) -> DataError:
    """Return the error of two rows that say different things of one image or group."""
    columns = [("label", one.label, other.label), ("split", one.split, other.split), ("group", one.group, other.group)]
    columns += zip(table.further, one.further, other.further, strict=True)
    name, first, second = next(column for column in columns if column[1] != column[2])
    values = f"{name}s" if name in ROLES else f"values of {quote(name)}"
    return DataError(
        f"lines {one.line} and {other.line} give {quote(of)} two {values}",
        path=table.path,
        expected=f"one {quote(name)} for each",
        found=f"line {one.line}: {quote(first) or 'none'}, line {other.line}: {quote(second) or 'none'}",
        fix="remove the wrong line",
    )


# Files


def _locate(table: Table, rows: list[TableRow], root: Path, folder: ImageSource | None) -> list[str]:
    """Return the path of each row's file; of a missing one, the path as the table has it."""

    def below() -> Iterable[str]:
        source = folder or FolderSource(root)
        try:
            return choose_images(source.names(), source.head)[0]
        except DataError as error:
            logger.warning("%s; files are not searched below %s", str(error).splitlines()[0], root)
            return []

    def exists(name: str) -> bool:
        return os.path.isfile(os.path.join(root, name)) if folder is None else folder.state(name) is not None

    found = _find(table, rows, root, exists, below)
    missing = [row for row, file in zip(rows, found, strict=True) if not file]
    folders = [row for row in missing if os.path.isdir(os.path.join(root, written_path(row.path)))]
    refuse_rows(table, folders, "path", "names a folder", "give each image a row")
    if missing and len(missing) == len(rows):
        raise DataError(
            "none of its images is there",
            path=table.path,
            expected=f"paths relative to {root}, or names of files below it",
            found=_named(missing, "path"),
            fix="move the table into the folder of the images, or correct the paths",
        )
    _warn(table, missing, f"missing: {len(missing)} of {len(rows)} images")
    return [file or written_path(row.path) for row, file in zip(rows, found, strict=True)]


def _find(
    table: Table, rows: list[TableRow], root: Path, exists: Callable[[str], bool], files: Callable[[], Iterable[str]]
) -> list[str]:
    """Find each row's file, empty if missing; refuse names that are no files below ``root`` or mean several."""
    urls = [row for row in rows if is_url(row.path)]
    outside = [row for row in rows if is_outside(row.path, root)]
    move = f"move the table into the folder of the images, or write paths relative to {root}"
    refuse_rows(table, urls, "path", "has an address in place of a file", _NO_ADDRESS)
    refuse_rows(table, outside, "path", f"has an absolute path outside {root}", move)
    found = find_files([row.path for row in rows], root, exists, files)
    for row, paths in zip(rows, found, strict=True):
        if len(paths) > 1:
            raise DataError(
                f"line {row.line}: {quote(row.path)} can mean {len(paths)} files",
                path=table.path,
                found=", ".join(map(quote, sorted(paths)[:4])),
                fix="write the folder of each image, too",
            )
    return [paths[0] if paths else "" for paths in found]
