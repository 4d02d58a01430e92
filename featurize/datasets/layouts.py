"""Lists the images of a data set: folders, classes, splits, groups, manifests. No image file is opened here."""

from __future__ import annotations

import csv
import io
import logging
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from xfeat.featurize.datasets.image_files import (
    IMAGE_SUFFIXES,
    choose_images,
    count_left_out,
    describe_left_out,
    image_names,
)
from xfeat.featurize.datasets.sources import FolderSource, ImageSource, open_source
from xfeat.featurize.datasets.structure import read_structure, split_of
from xfeat.featurize.errors import DataError, ImageError, SpecError

logger = logging.getLogger(__name__)

SPLITS = ("train", "valid", "test")
NO_SPLIT = 255
NO_LABEL = -1
GROUPS_FILE = "groups.csv"

LAYOUTS = (
    "train|valid|test/<class>/<image>, or <class>/<image>, or images without folders, in a folder or a zip archive, "
    "or a CSV file with the columns path,label[,split][,group]"
)


class ImageEntry(NamedTuple):
    """One image of a data set.

    Attributes:
        path: relative to the data root, with forward slashes.
        label: index into the class names, or ``NO_LABEL``.
        split: index into ``SPLITS``, or ``NO_SPLIT``.
        group: patient or series; images of one group must be in one split. Empty if unknown.
    """

    path: str
    label: int
    split: int
    group: str = ""


@dataclass(frozen=True)
class Dataset:
    """The images below one root, sorted by path.

    Attributes:
        root: the folder, archive, or folder of the manifest.
        class_names: sorted; labels are indices into it.
        entries: the images.
        layout: how the folders were read, such as ``3 splits × 2 classes, in chest_xray/``.
        left_out: per reason, the number of ``files``, of each of their ``suffixes``, and an ``example``.
    """

    root: Path
    class_names: tuple[str, ...]
    entries: list[ImageEntry]
    layout: str = ""
    left_out: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, root: Path, rows: list[tuple[str, str, int, str]]) -> Dataset:
        """Number the classes; a row is path, class (empty if none), split and group."""
        class_names = tuple(sorted({label for _, label, _, _ in rows if label}))
        code = {"": NO_LABEL, **{name: code for code, name in enumerate(class_names)}}
        entries = sorted(ImageEntry(path, code[label], split, group) for path, label, split, group in rows)
        return cls(root, class_names, entries)


def open_dataset(
    data: str | os.PathLike[str],
    *,
    classes: list[str] | None = None,
    groups: str | None = None,
    layout: str | None = None,
) -> Dataset:
    """List the images of ``data`` in any of the layouts in :data:`LAYOUTS`.

    Args:
        data: a folder, a zip archive, or a CSV manifest.
        classes: keep these classes only.
        groups: CSV file or regular expression for the groups; by default ``groups.csv`` in the folder, if there.
        layout: of folders, see :func:`xfeat.featurize.datasets.structure.read_structure`; by default what they allow.

    Raises:
        DataError: if the path does not exist, or contains no images.
    """
    root = Path(data)
    if not root.exists():
        raise DataError("folder or file not found", path=root, expected=LAYOUTS, fix="check the path")
    source = None if root.suffix.lower() == ".csv" else open_source(root)
    dataset, above = (_read_manifest(root), "") if source is None else _read_folders(root, source, layout)
    if not dataset.entries:
        raise DataError(
            "no images found",
            path=root,
            expected=LAYOUTS,
            found="; ".join(describe_left_out(dataset.left_out)) or "no files",
            fix="put images there, or give another folder",
        )
    logger.info("layout: %s", dataset.layout)
    for line in describe_left_out(dataset.left_out):
        logger.info("%s", line)
    if groups is not None:
        dataset = _with_groups(dataset, _read_groups(dataset, groups), f"--groups {groups}")
    elif source is not None:  # a manifest has a column for them
        dataset = _with_own_groups(dataset, source, above)
    return dataset if classes is None else _select_classes(dataset, classes, root)


def _select_classes(dataset: Dataset, wanted: list[str], data: Path) -> Dataset:
    """Keep only the classes in ``wanted``, which become the class names, sorted; ``data`` is named in messages."""
    if not wanted:
        raise DataError("no classes are given", path=data, fix="give classes with --classes A,B")
    if missing := [name for name in wanted if name not in dataset.class_names]:
        raise DataError(
            f"no class called {', '.join(missing)}",
            path=data,
            expected=f"some of: {', '.join(dataset.class_names) or 'none, the images have no labels'}",
            found=", ".join(wanted),
            fix="give existing classes with --classes A,B",
        )
    names = tuple(sorted(set(wanted)))
    index = {dataset.class_names.index(name): new for new, name in enumerate(names)}
    entries = [entry._replace(label=index[entry.label]) for entry in dataset.entries if entry.label in index]
    return replace(dataset, class_names=names, entries=entries)


# Folders and archives


def list_images(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return the given files, and for each folder the images in it and its subfolders, sorted by path.

    A given file is taken whatever its suffix; in folders the suffix decides, and hidden files are ignored.

    Raises:
        DataError: if a path does not exist, cannot be listed, or is a folder without images.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise DataError("file or folder not found", path=path, fix="check the path")
        images = (
            [path] if path.is_file() else sorted(path / name for name in image_names(FolderSource(path).names())[0])
        )
        if not images:
            raise DataError(
                "no images found",
                path=path,
                expected=f"files that end in {', '.join(sorted(IMAGE_SUFFIXES))}",
                fix="give another folder, or the files themselves",
            )
        found += images
    return found


def _read_folders(root: Path, source: ImageSource, layout: str | None) -> tuple[Dataset, str]:
    """Read splits and classes from folders; return the folders around everything, too."""
    names, left_out = choose_images(name for name in source.names() if not name.endswith(GROUPS_FILE))
    structure = read_structure(root, names, layout)
    for note in structure.notes:
        logger.warning("%s", note)
    code = {"": NO_SPLIT, **{name: code for code, name in enumerate(SPLITS)}}
    dataset = Dataset.of(root, [(image.path, image.label, code[image.split], "") for image in structure.images])
    counted = count_left_out(left_out + structure.left_out)
    return replace(dataset, layout=structure.text, left_out=counted), structure.above


# Groups


def _with_groups(dataset: Dataset, group_of: dict[str, str], source: str) -> Dataset:
    """Set the groups of the images with these paths; ``source`` is named in messages."""
    entries = [entry._replace(group=group_of.get(entry.path, entry.group)) for entry in dataset.entries]
    ungrouped = sum(not entry.group for entry in entries)
    if ungrouped == len(entries):
        raise DataError(
            f"{source} matches none of the images",
            path=dataset.root,
            expected=f"paths such as {entries[0].path}",
            fix="check the expression, or that the CSV's paths are relative to the data folder",
        )
    if ungrouped:
        logger.warning("%d of %d images have no group; each counts as its own", ungrouped, len(entries))
    return replace(dataset, entries=entries)


def _read_groups(dataset: Dataset, groups: str) -> dict[str, str]:
    """Return path to group, from a CSV file or by a regular expression on the paths."""
    file = Path(groups)
    if file.is_file():
        return _groups_from_csv(file)
    if groups.lower().endswith(".csv"):
        raise DataError("file not found", path=groups, fix="--groups takes a CSV file or a regular expression")
    try:
        expression = re.compile(groups)
    except re.error as error:
        raise SpecError(f"--groups {groups} is neither a file nor a regular expression", found=str(error)) from error
    matches = {entry.path: expression.search(entry.path) for entry in dataset.entries}
    return {path: match.group(min(1, expression.groups)) or "" for path, match in matches.items() if match}


def _with_own_groups(dataset: Dataset, source: ImageSource, above: str) -> Dataset:
    """Read ``groups.csv`` beside the images if there is one, in a folder or in an archive."""
    if source.state(above + GROUPS_FILE) is None:
        above = ""
        if source.state(GROUPS_FILE) is None:
            return dataset
    table = dataset.root / above / GROUPS_FILE
    logger.info("groups are read from %s", table)
    group_of = _groups_from_csv(table, source, above + GROUPS_FILE)
    return _with_groups(dataset, {above + path: group for path, group in group_of.items()}, str(table))


def _groups_from_csv(path: Path, source: ImageSource | None = None, member: str = "") -> dict[str, str]:
    rows = _read_csv(path, ("path", "group"), source, member)
    return {_path_in(row, path, line): (row["group"] or "").strip() for line, row in enumerate(rows, start=2)}


# CSV files


def _read_csv(
    path: Path, required: tuple[str, ...], source: ImageSource | None = None, member: str = ""
) -> list[dict[str, str]]:
    """Return the rows of a CSV file, or of the ``member`` of a ``source``, which messages call ``path``."""
    try:
        content, _ = (source or FolderSource(path.parent)).read(member or path.name)
        reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))
        columns = reader.fieldnames or []
        rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            "not a CSV file in UTF-8", path=path, found=str(error), fix="save it as CSV with the encoding UTF-8"
        ) from error
    except ImageError as error:
        raise DataError(error.what, path=path, fix="check the path and its permissions") from error
    if missing := [name for name in required if name not in columns]:
        raise DataError(
            f"the column {', '.join(missing)} is missing",
            path=path,
            expected=f"a first line that names the columns {', '.join(required)}",
            found=", ".join(columns) or "an empty file",
            fix="add the line or rename the columns",
        )
    return rows


def _read_manifest(path: Path) -> Dataset:
    rows: dict[str, tuple[str, str, int, str]] = {}
    for line, row in enumerate(_read_csv(path, ("path", "label")), start=2):
        name = _path_in(row, path, line)
        if name in rows:
            raise DataError(f"line {line} repeats the path {name}", path=path, fix="keep one line per image")
        label, split, group = ((row.get(column) or "").strip() for column in ("label", "split", "group"))
        if split and not split_of(split):
            raise DataError(
                f"line {line}: unknown split",
                path=path,
                expected=", ".join(SPLITS),
                found=split,
                fix="rename it, or leave the column empty",
            )
        rows[name] = (name, label, SPLITS.index(split_of(split)) if split else NO_SPLIT, group)
    dataset = Dataset.of(path.parent, list(rows.values()))
    return replace(dataset, layout=f"{len(rows)} rows of {path.name}, {len(dataset.class_names)} classes")


def _path_in(row: dict[str, str], file: Path, line: int) -> str:
    name = (row["path"] or "").strip()
    if not name:
        raise DataError(
            f"line {line} has no path", path=file, fix="enter an image in the column path, or remove the line"
        )
    return Path(name).as_posix()
