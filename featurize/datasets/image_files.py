"""Which files of a folder or archive are images of the data set, and why the others are not."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import PurePosixPath
from posixpath import splitext
from typing import Any, NamedTuple

from xfeat.featurize.images.file_kinds import HEAD_BYTES, image_kind
from xfeat.featurize.text import count_of

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".gif"})
IMAGE_SUFFIXES |= {".jp2", ".jpg2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".avif", ".pgm", ".ppm", ".pnm", ".pbm"}
DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".dic", ".ima"})
IMAGE_SUFFIXES |= {".apng", ".mpo", ".heic", ".heif", ".hif", *DICOM_SUFFIXES}
# Exports of PACS have no suffix, or end in a part of a UID, as 1.2.840.113619.2.5 does: their first bytes decide.
_NO_SUFFIX = re.compile(r"(\.\d*)?")
# DICOM has any suffix; of those that a data set has by the thousand, these are never opened for it.
_NEVER_DICOM = {".txt", ".csv", ".tsv", ".json", ".xml", ".html", ".md", ".yml", ".yaml", ".npy", ".npz", ".pt"}
# Thumbnails and other folders that operating systems, NAS and editors put beside images.
_SYSTEM_FOLDERS = {"__macosx", "@eadir", "#recycle", "@recycle", "@__thumb", "$recycle.bin", "lost+found", "thumbs"}
_SYSTEM_FOLDERS |= {"thumbnails", "_gsdata_", "system volume information", "__pycache__", "@tmp", "#snapshot"}
_SYSTEM_FOLDERS |= {"~snapshot", "@recently-snapshot"}
_IMAGE_FOLDERS = re.compile(r"(images?|imgs?|cxr|originals?|raw|pictures|photos|x)", re.IGNORECASE)
_MASK = r"(?i:masks?|segmentations?|seg|annotations?|labels?|ground[_ -]?truths?|gt|contours?)"
_MASK_FOLDERS = re.compile(rf"(.*[_ -]|.*[a-z](?=[A-Z]))?{_MASK}")
_MASK_ENDING = re.compile(rf"[_ -]{_MASK}([_ -]?\d+)?$")

LeftOut = list[tuple[str, str]]
"""Path and reason of each file that does not take part."""


class ListedImage(NamedTuple):
    """An image as its folders or a table list it.

    Attributes:
        path: relative to the data root, with forward slashes.
        label: its class, empty if it has none.
        split: train, valid, test, or empty.
        group: patient or series, empty if unknown.
        further: the texts of further columns.
    """

    path: str
    label: str
    split: str
    group: str = ""
    further: tuple[str, ...] = ()


class TableColumn(NamedTuple):
    """A further column that a table has for the images.

    Attributes:
        name: what it is called here.
        source: name of the table.
    """

    name: str
    source: str


@dataclass(frozen=True)
class Listing:
    """The images of a data set, and how its folders or table were read.

    Attributes:
        images: those that take part.
        text: what was taken, such as ``3 splits × 2 classes, in chest_xray/``.
        left_out: what does not take part.
        notes: what the user should know of how names were read.
        above: the folders around everything, empty or with a slash at the end.
        columns: further columns; each image has a text for each.
        headers: the names of all columns of the tables.
    """

    images: list[ListedImage]
    text: str
    left_out: LeftOut = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    above: str = ""
    columns: tuple[TableColumn, ...] = ()
    headers: tuple[str, ...] = ()


Head = Callable[[str, int], bytes]
"""Returns the first bytes of a file, by its name and their number."""


def choose_images(names: Iterable[str], head: Head) -> tuple[list[str], LeftOut]:
    """Divide the files of a data set into images, and others with the reason why they are left out.

    Args:
        names: of all files, relative to the root with forward slashes.
        head: reads the first bytes of a file.
    """
    images, left_out = image_names(names, head)
    masks = _masks(images)
    return [name for name in images if name not in masks], left_out + [(name, "a mask") for name in sorted(masks)]


def image_names(names: Iterable[str], head: Head) -> tuple[list[str], LeftOut]:
    """Divide files by their names into images, masks included, and others with the reason; arguments as above.

    Of files without a suffix, and of DICOM files with any, the first bytes decide.
    """
    images: list[str] = []
    left_out: LeftOut = []
    for name in names:
        if _SYSTEM_FOLDERS & set(name.lower().split("/")[:-1]):
            left_out.append((name, "in a folder of the system"))
        elif name.startswith(".") or "/." in name:
            left_out.append((name, "hidden"))
        elif name.rpartition("/")[2].upper() == "DICOMDIR":
            left_out.append((name, "an index of DICOM files"))
        elif _is_image(name, head):
            images.append(name)
        else:
            left_out.append((name, "not a known kind of image"))
    return images, left_out


def _is_image(name: str, head: Head) -> bool:
    suffix = splitext(name)[1].lower()
    if suffix in IMAGE_SUFFIXES or suffix in _NEVER_DICOM:
        return suffix in IMAGE_SUFFIXES
    kind = image_kind(head(name, HEAD_BYTES))
    return kind == "DICOM" or bool(kind and _NO_SUFFIX.fullmatch(suffix))


@cache
def is_mask_name(folder: str) -> bool:
    """Tell whether a folder is called as folders of masks are."""
    return bool(_MASK_FOLDERS.fullmatch(folder))


def _masks(images: list[str]) -> set[str]:
    """Return the images that are masks of others: the same name in a folder beside, or with an ending for masks."""
    stems = {splitext(name)[0] for name in images}
    folders_used = {part for stem in stems for part in stem.split("/")[:-1]}
    beside = [[], *([folder] for folder in folders_used if _IMAGE_FOLDERS.fullmatch(folder))]

    def is_mask(stem: str) -> bool:
        *folders, file = stem.split("/")
        image = _MASK_ENDING.sub("", file)
        possible = [[*folders, image]] if image != file else []
        for depth, folder in enumerate(folders):
            if is_mask_name(folder):
                possible += [[*folders[:depth], *other, *folders[depth + 1 :], image] for other in beside]
        return any("/".join(parts) in stems for parts in possible)

    return {name for name in images if is_mask(splitext(name)[0])}


def count_classes(images: Iterable[ListedImage]) -> str:
    """Return ``2 classes``, ``1 class`` or ``no classes``."""
    number = len({image.label for image in images if image.label})
    return count_of(number, "class", "classes") if number else "no classes"


def count_splits(images: Collection[ListedImage]) -> str:
    """Return ``3 splits × 2 classes``, and without splits :func:`count_classes` alone."""
    number = len({image.split for image in images if image.split})
    return f"{count_of(number, 'split')} × " * bool(number) + count_classes(images)


def count_left_out(left_out: LeftOut) -> dict[str, Any]:
    """Count files by reason: how many, of which suffixes, and the first as an example."""
    counted: dict[str, Any] = {}
    for name, reason in sorted(left_out):
        entry = counted.setdefault(reason, {"files": 0, "suffixes": Counter(), "example": name})
        entry["files"] += 1
        entry["suffixes"][PurePosixPath(name).suffix.lower() or "without suffix"] += 1
    return {reason: {**entry, "suffixes": dict(entry["suffixes"].most_common())} for reason, entry in counted.items()}


def describe_left_out(counted: dict[str, Any]) -> list[str]:
    """Return a line for each reason, such as ``left out, a mask: 2 .png, such as a/masks/1.png``."""
    return [
        f"left out, {reason}: {', '.join(f'{n} {suffix}' for suffix, n in entry['suffixes'].items())}, "
        f"such as {entry['example']}"
        for reason, entry in counted.items()
    ]
