"""Lists the images of a data set: folders, classes, splits, groups, manifests. No image file is opened here."""

from __future__ import annotations

import csv
import io
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from xfeat.featurize.datasets.sources import ZipSource
from xfeat.featurize.errors import DataError, SpecError

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".dcm", ".dicom"})
SPLITS = ("train", "valid", "test")
NO_SPLIT = 255
NO_LABEL = -1
GROUPS_FILE = "groups.csv"

_HIDDEN = re.compile(r"(^|/)(\.|__MACOSX/)")
_SPLIT_CODES = {"train": 0, "valid": 1, "val": 1, "validation": 1, "test": 2}
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
    """The images below one root, sorted by path."""

    root: Path
    class_names: tuple[str, ...]
    entries: list[ImageEntry]

    def select_classes(self, wanted: list[str], data: Path | None = None) -> Dataset:
        """Keep only the classes in ``wanted``, which become the class names, sorted; ``data`` is named in messages.

        Raises:
            DataError: if a wanted class is not in the data set.
        """
        if not wanted:
            raise DataError("no classes are given", path=data or self.root, fix="give classes with --classes A,B")
        if missing := [name for name in wanted if name not in self.class_names]:
            raise DataError(
                f"no class called {', '.join(missing)}",
                path=data or self.root,
                expected=f"some of: {', '.join(self.class_names) or 'none, the images have no labels'}",
                found=", ".join(wanted),
                fix="give existing classes with --classes A,B",
            )
        names = tuple(sorted(set(wanted)))
        index = {self.class_names.index(name): new for new, name in enumerate(names)}
        entries = [entry._replace(label=index[entry.label]) for entry in self.entries if entry.label in index]
        return Dataset(self.root, names, entries)

    def with_groups(self, source: str) -> Dataset:
        """Set the group of each image from a CSV file (path,group) or a regular expression on the path.

        Raises:
            DataError: if the file lacks a column, the expression is invalid, or no image gets a group.
        """
        if _is_file(source):
            return self._with_group_of(_groups_from_csv(Path(source)), f"--groups {source}")
        return self._with_entries_grouped(_groups_from_pattern(self.entries, source), f"--groups {source}")

    def _with_group_of(self, group_of: dict[str, str], source: str) -> Dataset:
        entries = [entry._replace(group=group_of.get(entry.path, entry.group)) for entry in self.entries]
        return self._with_entries_grouped(entries, source)

    def _with_entries_grouped(self, entries: list[ImageEntry], source: str) -> Dataset:
        ungrouped = sum(not entry.group for entry in entries)
        if entries and ungrouped == len(entries):
            raise DataError(
                f"{source} matches none of the images",
                path=self.root,
                expected=f"paths such as {entries[0].path}",
                fix="check the expression, or that the CSV's paths are relative to the data folder",
            )
        if ungrouped:
            logger.warning("%d of %d images have no group; each counts as its own", ungrouped, len(entries))
        return replace(self, entries=entries)


def open_dataset(
    data: str | os.PathLike[str], *, classes: list[str] | None = None, groups: str | None = None
) -> Dataset:
    """List the images of ``data`` in any of the layouts in :data:`LAYOUTS`.

    Args:
        data: a folder, a zip archive, or a CSV manifest.
        classes: keep these classes only.
        groups: CSV file or regular expression for the groups; by default ``groups.csv`` in the folder, if there.

    Raises:
        DataError: if the path does not exist, or contains no images.
    """
    root = Path(data)
    if not root.exists():
        raise DataError("folder or file not found", path=root, expected=LAYOUTS, fix="check the path")
    dataset = _read_manifest(root) if root.suffix.lower() == ".csv" else _infer_structure(root, _image_names(root))
    if not dataset.entries:
        raise DataError(
            "no images found",
            path=root,
            expected=LAYOUTS,
            found=f"no file that ends in {', '.join(sorted(IMAGE_SUFFIXES))}",
            fix="put images there, or give another folder",
        )
    if groups is not None:
        dataset = dataset.with_groups(groups)
    elif root.suffix.lower() != ".csv":  # a manifest has a column for them
        dataset = _with_own_groups(dataset)
    return dataset.select_classes(classes, root) if classes is not None else dataset


def _with_own_groups(dataset: Dataset) -> Dataset:
    """Read ``groups.csv`` beside the images if there is one, in a folder or in an archive."""
    root, above = dataset.root, ""
    if root.is_dir():
        table = root / GROUPS_FILE
        if not table.is_file():
            return dataset
        content = None
    else:
        archive, above = ZipSource(root), _folder_around([entry.path for entry in dataset.entries])
        if above + GROUPS_FILE not in archive.names():
            return dataset
        table, content = root / above / GROUPS_FILE, archive.read(above + GROUPS_FILE)[0]
    logger.info("groups are read from %s", table)
    group_of = {above + path: group for path, group in _groups_from_csv(table, content).items()}
    return dataset._with_group_of(group_of, str(table))


def _is_file(source: str) -> bool:
    if source.lower().endswith(".csv") and not Path(source).is_file():
        raise DataError("file not found", path=source, fix="--groups takes a CSV file or a regular expression")
    return Path(source).is_file()


# Folders and archives


def _image_names(root: Path) -> list[str]:
    if root.is_dir():
        return list(names_in_folder(root))
    return [name for name in ZipSource(root).names() if _is_image(name) and not _HIDDEN.search(name)]


def names_in_folder(root: Path) -> Iterator[str]:
    """Yield the image files below a folder, relative to it with forward slashes; hidden ones are ignored.

    Symbolic links to folders are followed, unless they point to a folder that contains them.

    Raises:
        DataError: if a folder cannot be listed.
    """
    for directory, subfolders, files in os.walk(root, followlinks=True, onerror=_cannot_list):
        subfolders[:] = sorted(
            name for name in subfolders if not name.startswith(".") and not _is_link_loop(directory, name)
        )
        prefix = os.path.relpath(directory, root).replace(os.sep, "/")
        for name in files:
            if not name.startswith(".") and _is_image(name):
                yield name if prefix == "." else f"{prefix}/{name}"


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _cannot_list(error: OSError) -> None:
    # os.walk would skip the folder silently.
    raise DataError(
        f"cannot be listed: {error.strerror}", path=error.filename, fix="check its permissions, or move it away"
    ) from error


def _is_link_loop(directory: str, name: str) -> bool:
    """Tell whether a folder is a link to one of its parent folders: following it would never end."""
    path = os.path.join(directory, name)
    if not os.path.islink(path):
        return False
    target = os.path.realpath(path)
    passed = (os.path.realpath(folder) for folder in (directory, *map(str, Path(directory).parents)))
    return any(os.path.commonpath([target, folder]) == target for folder in passed)


def _infer_structure(root: Path, names: list[str]) -> Dataset:
    """Infer splits and classes from the folders in the names."""
    above = "" if root.is_dir() else _folder_around(names)
    parts = {name: name.removeprefix(above).split("/") for name in names}
    splits = {name: _SPLIT_CODES[first[0].lower()] for name, first in parts.items() if _is_split(first)}
    if splits:
        _warn_of_ignored({p[0] + "/" * (len(p) > 1) for name, p in parts.items() if name not in splits})
        found = [(name, parts[name][1:], split) for name, split in splits.items()]
    else:
        found = [(name, part, NO_SPLIT) for name, part in parts.items()]
    classes = [(name, inner[0] if len(inner) > 1 else "", split) for name, inner, split in found]
    class_names = tuple(sorted({label for _, label, _ in classes if label}))
    if class_names and (loose := [name for name, label, _ in classes if not label]):
        logger.warning("%d images outside the class folders are ignored, such as %s", len(loose), loose[0])
        classes = [row for row in classes if row[1]]
    index = {name: code for code, name in enumerate(class_names)}
    entries = [ImageEntry(name, index.get(label, NO_LABEL), split) for name, label, split in classes]
    return Dataset(root, class_names, sorted(entries))


def _folder_around(names: list[str]) -> str:
    """Return the top folder of an archive, if it contains all files and there are subfolders in it."""
    tops = {name.partition("/")[0] for name in names}
    if len(tops) != 1 or any(name.count("/") < 2 for name in names) or next(iter(tops)).lower() in _SPLIT_CODES:
        return ""
    return f"{tops.pop()}/"


def _is_split(parts: list[str]) -> bool:
    return len(parts) > 1 and parts[0].lower() in _SPLIT_CODES


def _warn_of_ignored(names: set[str]) -> None:
    for name in sorted(names):
        logger.warning("%s is ignored: it is not in a split (train, valid, test)", name)


# Manifests and groups


def _read_csv(path: Path, required: tuple[str, ...], content: bytes | None = None) -> list[dict[str, str]]:
    try:
        text = (path.read_bytes() if content is None else content).decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""))
        columns = reader.fieldnames or []
        rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            "not a CSV file in UTF-8", path=path, found=str(error), fix="save it as CSV with the encoding UTF-8"
        ) from error
    except OSError as error:
        raise DataError(
            f"cannot be read: {error.strerror}", path=path, fix="check the path and its permissions"
        ) from error
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
    rows = _read_csv(path, ("path", "label"))
    labels = [(row["label"] or "").strip() for row in rows]
    class_names = tuple(sorted({label for label in labels if label}))
    index = {name: code for code, name in enumerate(class_names)}
    entries: dict[str, ImageEntry] = {}
    for line, (row, label) in enumerate(zip(rows, labels, strict=True), start=2):
        name = _path_in(row, path, line)
        if name in entries:
            raise DataError(f"line {line} repeats the path {name}", path=path, fix="keep one line per image")
        split = (row.get("split") or "").strip().lower()
        if split and split not in _SPLIT_CODES:
            raise DataError(
                f"line {line}: unknown split",
                path=path,
                expected=", ".join(_SPLIT_CODES),
                found=split,
                fix="rename it, or leave the column empty",
            )
        code, group = _SPLIT_CODES.get(split, NO_SPLIT), (row.get("group") or "").strip()
        entries[name] = ImageEntry(name, index.get(label, NO_LABEL), code, group)
    return Dataset(path.parent, class_names, sorted(entries.values()))


def _path_in(row: dict[str, str], file: Path, line: int) -> str:
    name = (row["path"] or "").strip()
    if not name:
        raise DataError(
            f"line {line} has no path", path=file, fix="enter an image in the column path, or remove the line"
        )
    return Path(name).as_posix()


def _groups_from_csv(path: Path, content: bytes | None = None) -> dict[str, str]:
    rows = _read_csv(path, ("path", "group"), content)
    return {_path_in(row, path, line): (row["group"] or "").strip() for line, row in enumerate(rows, start=2)}


def _groups_from_pattern(entries: list[ImageEntry], pattern: str) -> list[ImageEntry]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise SpecError(f"--groups {pattern} is neither a file nor a regular expression", found=str(error)) from error
    matches = [expression.search(entry.path) for entry in entries]
    return [
        entry._replace(group=(match.group(1) if expression.groups else match.group(0)) or "") if match else entry
        for entry, match in zip(entries, matches, strict=True)
    ]
