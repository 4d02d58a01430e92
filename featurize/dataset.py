"""Which images there are: folders, class names, splits, groups, manifests. Only names and sizes are read here."""

from __future__ import annotations

import csv
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from featurize.errors import DataError

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
SPLITS = ("train", "valid", "test")
NO_SPLIT = 255
NO_LABEL = -1
GROUPS_FILE = "groups.csv"

_SPLIT_CODES = {"train": 0, "valid": 1, "val": 1, "validation": 1, "test": 2}
LAYOUTS = (
    "train|valid|test/<class>/<image>, or <class>/<image>, or images without folders, "
    "or a CSV file with the columns path,label[,split][,group]"
)


class ImageEntry(NamedTuple):
    """One image of a data set.

    Attributes:
        path: relative to the data root, with forward slashes.
        label: index into the class names, or ``NO_LABEL``.
        split: index into ``SPLITS``, or ``NO_SPLIT``.
        group: patient or series; images of one group belong into one split. Empty if unknown.
    """

    path: str
    label: int
    split: int
    group: str = ""


@dataclass(frozen=True)
class Dataset:
    """The images below one root, sorted by path."""

    root: Path
    class_names: tuple[str, ...]
    entries: list[ImageEntry]

    def select_classes(self, wanted: list[str]) -> Dataset:
        """Keep only the classes in ``wanted``, which become the class names, sorted.

        Raises:
            DataError: if a wanted class is not in the data set.
        """
        if missing := [name for name in wanted if name not in self.class_names]:
            raise DataError(
                f"no class called {', '.join(missing)}",
                path=self.root,
                expected=f"some of: {', '.join(self.class_names) or 'none, the images have no labels'}",
                found=", ".join(wanted),
                mend="name existing classes with --classes A,B",
            )
        names = tuple(sorted(set(wanted)))
        index = {self.class_names.index(name): new for new, name in enumerate(names)}
        entries = [entry._replace(label=index[entry.label]) for entry in self.entries if entry.label in index]
        return Dataset(self.root, names, entries)

    def with_groups(self, source: str) -> Dataset:
        """Name the group of each image from a CSV file (path,group) or a regular expression on the path.

        Raises:
            DataError: if the file lacks a column, the expression is invalid, or no image gets a group.
        """
        group_of = _groups_from_csv(Path(source)) if _is_file(source) else None
        if group_of is None:
            entries = _grouped_by_pattern(self.entries, source)
        else:
            entries = [entry._replace(group=group_of.get(entry.path, entry.group)) for entry in self.entries]
        ungrouped = sum(not entry.group for entry in entries)
        if entries and ungrouped == len(entries):
            raise DataError(
                f"--groups {source} gives no image a group",
                path=self.root,
                expected=f"paths such as {entries[0].path}",
                mend="check the expression, or that the CSV's paths are relative to the data folder",
            )
        if ungrouped:
            logger.warning("%d of %d images have no group; each counts as its own", ungrouped, len(entries))
        return replace(self, entries=entries)


def open_dataset(
    data: str | os.PathLike[str], *, classes: list[str] | None = None, groups: str | None = None
) -> Dataset:
    """List the images of ``data`` in any of the layouts in :data:`LAYOUTS`.

    Args:
        data: a folder, or a CSV manifest.
        classes: keep these classes only.
        groups: CSV file or regular expression that names groups; by default ``groups.csv`` in the folder, if there.

    Raises:
        DataError: if there is no such folder or no image in it.
    """
    root = Path(data)
    if not root.exists():
        raise DataError("no such folder or file", path=root, expected=LAYOUTS, mend="check the path")
    dataset = _read_manifest(root) if root.is_file() else _scan_folder(root)
    if not dataset.entries:
        raise DataError(
            "no images found",
            path=root,
            expected=LAYOUTS,
            found=f"no file that ends in {', '.join(sorted(IMAGE_SUFFIXES))}",
            mend="put images there, or name another folder",
        )
    if groups is None and root.is_dir() and (root / GROUPS_FILE).is_file():
        groups = str(root / GROUPS_FILE)
        logger.info("groups are read from %s", groups)
    if groups is not None:
        dataset = dataset.with_groups(groups)
    return dataset.select_classes(classes) if classes else dataset


def _is_file(source: str) -> bool:
    if source.lower().endswith(".csv") and not Path(source).is_file():
        raise DataError("no such file", path=source, mend="--groups takes a CSV file or a regular expression")
    return Path(source).is_file()


# Folders


def _scan_folder(root: Path) -> Dataset:
    folders = sorted(child.name for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))
    split_folders = [name for name in folders if name.lower() in _SPLIT_CODES]
    if split_folders:
        parts = [(root / name, _SPLIT_CODES[name.lower()]) for name in split_folders]
        _warn_of_ignored(root, [name for name in folders if name not in split_folders])
    else:
        parts = [(root, NO_SPLIT)]
    found = [(path, label, split) for folder, split in parts for path, label in _images_with_class(folder, root)]
    class_names = tuple(sorted({label for _, label, _ in found if label}))
    if class_names and any(not label for _, label, _ in found):
        loose = [path for path, label, _ in found if not label]
        logger.warning("%d images outside the class folders are left out, such as %s", len(loose), loose[0])
        found = [row for row in found if row[1]]
    index = {name: code for code, name in enumerate(class_names)}
    entries = [ImageEntry(path, index.get(label, NO_LABEL), split) for path, label, split in found]
    return Dataset(root, class_names, sorted(entries))


def _images_with_class(folder: Path, root: Path) -> Iterator[tuple[str, str]]:
    """Yield (path relative to root, class or "") for every image below ``folder``."""
    for directory, subfolders, files in os.walk(folder, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        parts = Path(directory).relative_to(folder).parts
        label = parts[0] if parts else ""
        prefix = Path(directory).relative_to(root).as_posix()
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                yield (name if prefix == "." else f"{prefix}/{name}"), label


def _warn_of_ignored(root: Path, names: list[str]) -> None:
    for name in names:
        if next(_images_with_class(root / name, root), None) is not None:
            logger.warning("%s/ is left out: it is not a split (train, valid, test)", name)


# Manifests and groups


def _read_csv(path: Path, required: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError("not a CSV file in UTF-8", path=path, found=str(error)) from error
    if missing := [name for name in required if name not in columns]:
        raise DataError(
            f"the column {', '.join(missing)} is missing",
            path=path,
            expected=f"a first line that names the columns {', '.join(required)}",
            found=", ".join(columns) or "an empty file",
            mend="add the line or rename the columns",
        )
    return rows


def _read_manifest(path: Path) -> Dataset:
    rows = _read_csv(path, ("path", "label"))
    class_names = tuple(sorted({row["label"] for row in rows if row["label"]}))
    index = {name: code for code, name in enumerate(class_names)}
    entries: dict[str, ImageEntry] = {}
    for line, row in enumerate(rows, start=2):
        name = Path(row["path"]).as_posix()
        if name in entries:
            raise DataError(f"line {line} names {name} a second time", path=path, mend="keep one line an image")
        split = (row.get("split") or "").strip().lower()
        if split and split not in _SPLIT_CODES:
            raise DataError(f"line {line}: unknown split", path=path, expected=", ".join(_SPLIT_CODES), found=split)
        entries[name] = ImageEntry(
            name, index.get(row["label"], NO_LABEL), _SPLIT_CODES.get(split, NO_SPLIT), row.get("group") or ""
        )
    return Dataset(path.parent, class_names, sorted(entries.values()))


def _groups_from_csv(path: Path) -> dict[str, str]:
    return {Path(row["path"]).as_posix(): row["group"] for row in _read_csv(path, ("path", "group"))}


def _grouped_by_pattern(entries: list[ImageEntry], pattern: str) -> list[ImageEntry]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise DataError(f"--groups {pattern} is neither a file nor a regular expression", found=str(error)) from error
    matches = [expression.search(entry.path) for entry in entries]
    return [
        entry._replace(group=(match.group(1) if expression.groups else match.group(0)) or "") if match else entry
        for entry, match in zip(entries, matches, strict=True)
    ]
