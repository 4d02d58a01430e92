"""Lists the images of a data set: folders, classes, splits, groups, manifests. No image file is opened here."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

from xfeat.featurize.datasets.column_choice import AS_WRITTEN, DICOM_COLUMNS, ColumnChoice
from xfeat.featurize.datasets.described import list_containers, match_shards, split_pattern
from xfeat.featurize.datasets.image_files import (
    LeftOut,
    Listing,
    TableColumn,
    choose_images,
    count_left_out,
    describe_left_out,
)
from xfeat.featurize.datasets.manifest import read_group_table, read_manifest
from xfeat.featurize.datasets.metadata import join_metadata
from xfeat.featurize.datasets.structure import read_structure
from xfeat.featurize.datasets.tables import TABLE_SUFFIXES, read_content
from xfeat.featurize.errors import DataError, SpecError
from xfeat.featurize.sources.containers import Folder, is_container
from xfeat.featurize.sources.image_source import ImageSource
from xfeat.featurize.sources.opening import open_source
from xfeat.featurize.text import listed, quote
from xfeat.featurize.urls import Root, Url

logger = logging.getLogger(__name__)

SPLITS = ("train", "valid", "test")
NO_SPLIT = 255
SPLIT_CODES = {"": NO_SPLIT, **{name: code for code, name in enumerate(SPLITS)}}
NO_LABEL = -1
GROUPS_FILE = "groups.csv"
MAX_NAME_BYTES = 4096  # of a path or group; Linux opens no longer path

LAYOUTS = (
    "train|valid|test/<class>/<image>, or <class>/<image>, or images without folders, in a folder or an archive (zip, "
    "tar), here or at an address (s3://, gs://, https://); or a parquet table of images; or a CSV file (comma, "
    "semicolon or tab) with the columns path,label[,split][,group]"
)


class ImageEntry(NamedTuple):
    """One image of a data set.

    Attributes:
        path: relative to the data root, with forward slashes.
        label: index into the class names, or ``NO_LABEL``.
        split: index into ``SPLITS``, or ``NO_SPLIT``.
        group: patient or series; images of one group must be in one split. Empty if unknown.
        further: the texts of further columns.
    """

    path: str
    label: int
    split: int
    group: str = ""
    further: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """The images below one root, sorted by path.

    Attributes:
        root: the folder, archive, or folder of the manifest.
        class_names: sorted; labels are indices into it.
        entries: the images.
        layout: how the folders were read, such as ``3 splits × 2 classes, in chest_xray/``.
        left_out: per reason, the number of ``files``, of each of their ``suffixes``, and an ``example``.
        table: the manifest, if the images come from one.
        columns: further columns; each entry has a text for each.
        column_kinds: kinds that the user asks for, by the names of columns.
        source: where the images are read, if it is open already.
        corrections: that were applied to labels and splits; those of groups are applied when all groups are known.
    """

    root: Root
    class_names: tuple[str, ...]
    entries: list[ImageEntry]
    layout: str = ""
    left_out: dict[str, Any] = field(default_factory=dict)
    table: Path | None = None
    columns: tuple[TableColumn, ...] = ()
    column_kinds: Mapping[str, str] = field(default_factory=dict)
    source: ImageSource | None = field(default=None, compare=False, repr=False)
    corrections: tuple[Any, ...] = ()

    def open(self) -> ImageSource:
        """Return where the images are read."""
        return open_source(self.root) if self.source is None else self.source

    @classmethod
    def of(cls, root: Root, listing: Listing, table: Path | None = None) -> Dataset:
        """Number the classes of the images in a listing, and sort the images."""
        class_names = tuple(sorted({image.label for image in listing.images if image.label}))
        labels = {"": NO_LABEL, **{name: code for code, name in enumerate(class_names)}}
        entries = sorted(
            ImageEntry(image.path, labels[image.label], SPLIT_CODES[image.split], image.group, image.further)
            for image in listing.images
        )
        return cls(root, class_names, entries, listing.text, count_left_out(listing.left_out), table, listing.columns)


def open_dataset(
    data: str | os.PathLike[str],
    *,
    classes: list[str] | None = None,
    groups: str | None = None,
    layout: str | None = None,
    metadata: str | os.PathLike[str] | None = None,
    columns: ColumnChoice = AS_WRITTEN,
    content: bytes | None = None,
) -> Dataset:
    """List the images of ``data`` in any of the layouts in :data:`LAYOUTS`.

    Args:
        data: a folder, a zip archive, or a CSV manifest.
        classes: keep these classes only.
        groups: CSV file or regular expression for the groups; by default ``groups.csv`` in the folder, if there.
        layout: of folders, see :func:`xfeat.featurize.datasets.structure.read_structure`; by default what they allow.
        metadata: table of further columns, joined by path, base name or group.
        columns: what the user says of the columns of the manifest and of ``metadata``.
        content: of a CSV manifest that exists in memory only; ``data`` is its name.

    Raises:
        DataError: if the path does not exist, contains no images, or has names that a cache cannot hold.
        SpecError: if there is a ``layout``, and ``data`` is a table, or ``columns`` names one that is not there.
    """
    root, pattern = split_pattern(data)
    if content is None and isinstance(root, Path) and not root.exists():
        raise DataError("folder or file not found", path=root, expected=LAYOUTS, fix="check the path")
    source, table, folder = None, None, None
    if isinstance(root, Url) and is_table(root.name):
        folder, content = remote_table(root)
    if content is not None or (isinstance(root, Path) and root.is_file() and is_table(root.name)):
        if layout is not None:
            raise SpecError(f"--layout {layout} is for folders", found=f"{root}, a table", fix="leave --layout away")
        table, root = cast(Path, root), root.parent  # an address is only shown
        listing = read_manifest(table, columns, content, folder)
    else:
        source = open_source(root)
        if isinstance(root, Url) and root.has_secrets:
            logger.info("%s: the rest of the address is not stored; what reads images again needs it in full", root)
        listing = _read_source(root, source, layout, pattern, columns)
    lines = describe_left_out(count_left_out(listing.left_out))
    if not listing.images:
        raise DataError(
            "no images found",
            path=table or root,
            expected=LAYOUTS,
            found="; ".join(lines) or ("no files" if source else "no rows"),
            fix="put images there, or give another folder",
        )
    for note in listing.notes:
        logger.warning("%s", note)
    for line in (f"layout: {listing.text}", *lines):
        logger.info("%s", line)
    if groups is not None:
        group_of, header = _read_groups(listing, root, groups, columns)
        listing = replace(listing, headers=(*listing.headers, *header))
        listing = _with_groups(listing, root, group_of, f"--groups {groups}")
    elif source is not None:  # a table has a column for them
        listing = _with_own_groups(listing, root, source)
    if metadata is not None:
        listing = join_metadata(listing, Path(metadata), root, columns)
    columns.check_used([column.name for column in listing.columns], listing.headers, DICOM_COLUMNS)
    listing = _without_ignored(listing, columns)
    dataset = replace(Dataset.of(root, listing, table), column_kinds=columns.kinds, source=source or folder)
    _check_widths(dataset)
    return dataset if classes is None else _select_classes(dataset, classes, table or root)


def _without_ignored(listing: Listing, choice: ColumnChoice) -> Listing:
    """Drop the columns that the user wants to leave out."""
    left = [at for at, column in enumerate(listing.columns) if choice.kinds.get(column.name) != "ignore"]
    if len(left) == len(listing.columns):
        return listing
    images = [image._replace(further=tuple(image.further[at] for at in left)) for image in listing.images]
    return replace(listing, images=images, columns=tuple(listing.columns[at] for at in left))


def _check_widths(dataset: Dataset) -> None:
    """Refuse names that a cache, which stores all in the width of the longest, cannot hold."""
    for what in ("path", "group"):
        longest = max((getattr(entry, what) for entry in dataset.entries), key=_byte_count)
        if (width := _byte_count(longest)) > MAX_NAME_BYTES:
            raise DataError(
                f"the name of a {what} is too long",
                path=dataset.table or dataset.root,
                expected=f"at most {MAX_NAME_BYTES:,} bytes",
                found=f"{width:,}: {quote(longest)}",
                fix="shorten it",
            )


def _byte_count(name: str) -> int:
    return len(name.encode("utf-8", "surrogateescape"))


def _select_classes(dataset: Dataset, wanted: list[str], data: Root) -> Dataset:
    """Keep only the classes in ``wanted``, which become the class names, sorted; ``data`` is named in messages."""
    if not wanted:
        raise DataError("no classes are given", path=data, fix="give classes with --classes A,B")
    if missing := [name for name in wanted if name not in dataset.class_names]:
        raise DataError(
            f"no class called {listed(missing)}",
            path=data,
            expected=f"some of: {listed(dataset.class_names) or 'none, the images have no labels'}",
            found=listed(wanted),
            fix="give existing classes with --classes A,B",
        )
    names = tuple(sorted(set(wanted)))
    index = {dataset.class_names.index(name): new for new, name in enumerate(names)}
    entries = [entry._replace(label=index[entry.label]) for entry in dataset.entries if entry.label in index]
    others = count_left_out(
        [(each.path, "of no class in --classes") for each in dataset.entries if each.label not in index]
    )
    for line in describe_left_out(others):
        logger.info("%s", line)
    return replace(dataset, class_names=names, entries=entries, left_out={**dataset.left_out, **others})


# Folders and archives


def is_table(name: str) -> bool:
    """Tell whether a file is called like a table that names images; one of parquet holds them."""
    return os.path.splitext(name)[1].lower() in TABLE_SUFFIXES - {".parquet"}


def remote_table(url: Url) -> tuple[ImageSource, bytes]:
    """Return the folder of a table at an address, and the content of the table.

    Raises:
        DataError: if it cannot be read.
    """
    if url.is_web:
        raise DataError(
            "a web server does not list the images beside a table",
            path=url,
            expected="an archive or a parquet table",
            fix="download the table and the images",
        )
    folder = open_source(url.parent)
    return folder, read_content(url, folder.read, url.name)


def _read_source(root: Root, source: ImageSource, layout: str | None, pattern: str, choice: ColumnChoice) -> Listing:
    """List the images of a folder, an archive or a table, or of the archives and tables in a folder."""
    if not isinstance(source, Folder):
        described = list_containers(root, {"": source}, layout, choice)
        return described or _read_names(root, source, layout, *choose_images(source.names(), source.head))
    files = list(source.names())
    names, left_out = ([], []) if pattern else choose_images(files, source.head)
    if not names:
        shards = match_shards(root, pattern, files) if pattern else sorted(filter(is_container, files))
        containers = {name: found for name in shards if (found := source.container(name)) is not None}
        if containers and (described := list_containers(root, containers, layout, choice)) is not None:
            others = [(name, reason) for name, reason in left_out if name not in containers]
            return replace(described, left_out=[*others, *described.left_out])
    return _read_names(root, source, layout, names, left_out)


def _read_names(root: Root, source: ImageSource, layout: str | None, names: list[str], left_out: LeftOut) -> Listing:
    """List the images of a folder or an archive by their names alone."""
    listing = read_structure(root, names, layout)
    groups = _groups_file(source, listing.above)
    left_out = [(name, reason) for name, reason in left_out if name != groups]
    return replace(listing, left_out=left_out + listing.left_out, notes=[*source.doubts, *listing.notes])


# Groups


def _with_groups(listing: Listing, root: Root, group_of: dict[str, str], source: str) -> Listing:
    """Set the groups of the images with these paths; ``source`` is named in messages."""
    images = [image._replace(group=group_of.get(image.path, image.group)) for image in listing.images]
    ungrouped = sum(not image.group for image in images)
    if ungrouped == len(images):
        raise DataError(
            f"{source} matches none of the images",
            path=root,
            expected=f"paths such as {images[0].path}",
            fix="check the expression, or that the CSV's paths are relative to the data folder",
        )
    if ungrouped:
        logger.warning("%d of %d images have no group; each counts as its own", ungrouped, len(images))
    return replace(listing, images=images)


def _read_groups(
    listing: Listing, root: Root, groups: str, choice: ColumnChoice
) -> tuple[dict[str, str], Sequence[str]]:
    """Return path to group, from a table, whose header follows, or by a regular expression on the paths."""
    file = Path(groups)
    if os.path.isfile(groups):  # False for an expression that is too long for a name
        return read_group_table(file, [image.path for image in listing.images], Path(root), choice)
    if file.suffix.lower() in TABLE_SUFFIXES:
        raise DataError("file not found", path=groups, fix="--groups takes a table (CSV) or a regular expression")
    try:
        expression = re.compile(groups)
    except re.error as error:
        raise SpecError(f"--groups {groups} is neither a file nor a regular expression", found=str(error)) from error
    matches = {image.path: expression.search(image.path) for image in listing.images}
    return {path: match.group(min(1, expression.groups)) or "" for path, match in matches.items() if match}, ()


def _groups_file(source: ImageSource, above: str) -> str | None:
    """Return the name of ``groups.csv`` beside the images, in a folder or in an archive, if there is one."""
    return next((name for name in (above + GROUPS_FILE, GROUPS_FILE) if source.state(name) is not None), None)


def _with_own_groups(listing: Listing, root: Root, source: ImageSource) -> Listing:
    name = _groups_file(source, listing.above)
    if name is None:
        return listing
    folder = name.removesuffix(GROUPS_FILE)
    table = cast(Path, root / name)  # of an address, which is only shown: the source reads it
    logger.info("groups are read from %s", table)
    images = [image.path.removeprefix(folder) for image in listing.images]
    group_of, _ = read_group_table(table, images, table.parent, content=read_content(table, source.read, name))
    return _with_groups(listing, root, {folder + path: group for path, group in group_of.items()}, str(table))
