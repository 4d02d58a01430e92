"""Which files of a folder or archive are images of the data set, and why the others are not."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath
from posixpath import splitext
from typing import Any

from xfeat.featurize.images.file_kinds import HEAD_BYTES, image_kind

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".gif"})
IMAGE_SUFFIXES |= {".jp2", ".jpg2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".avif", ".pgm", ".ppm", ".pnm", ".pbm"}
IMAGE_SUFFIXES |= {".apng", ".mpo", ".heic", ".heif", ".hif", ".dcm", ".dicom", ".dic", ".ima"}
# Exports of PACS have no suffix, or end in a part of a UID, as 1.2.840.113619.2.5 does: their first bytes decide.
_NO_SUFFIX = re.compile(r"(\.\d*)?")
# DICOM has any suffix; of those that a data set has by the thousand, these are never opened for it.
_NEVER_DICOM = {".txt", ".csv", ".tsv", ".json", ".xml", ".html", ".md", ".yml", ".yaml", ".npy", ".npz", ".pt"}
# Thumbnails and other folders that operating systems, NAS and editors put beside images.
_SYSTEM_FOLDERS = {"__macosx", "@eadir", "#recycle", "@recycle", "@__thumb", "$recycle.bin", "lost+found", "thumbs"}
_SYSTEM_FOLDERS |= {"thumbnails", "_gsdata_", "system volume information", "__pycache__"}
_IMAGE_FOLDERS = re.compile(r"^(images?|imgs?|cxr|originals?|raw|pictures|photos|x)$", re.IGNORECASE)
_MASK_FOLDERS = re.compile(
    r"^(.*[_ -])?(masks?|segmentations?|annotations?|labels?|ground[_ -]?truths?|gt|contours?)$", re.IGNORECASE
)
_MASK_ENDING = re.compile(r"[_ -](masks?|segmentation|seg|gt)$", re.IGNORECASE)


def is_mask_name(folder: str) -> bool:
    """Tell whether a folder is called as folders of masks are."""
    return bool(_MASK_FOLDERS.match(folder))


LeftOut = list[tuple[str, str]]
"""Path and reason of each file that does not take part."""
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


def _masks(images: list[str]) -> set[str]:
    """Return the images that are masks of others: the same name in a folder beside, or with an ending for masks."""
    stems = {splitext(name)[0] for name in images}
    beside: defaultdict[str, set[str]] = defaultdict(set)  # the folders in each folder
    for folder in {name.rpartition("/")[0] for name in images}:
        parts = folder.split("/")
        for depth, part in enumerate(parts):
            beside["/".join(parts[:depth])].add(part)
    called_mask = {folder for inner in beside.values() for folder in inner if is_mask_name(folder)}
    found = set()
    for name in images:
        stem = splitext(name)[0]
        ending = _MASK_ENDING.search(stem)
        if ending and stem[: ending.start()] in stems:
            found.add(name)
            continue
        *folders, file = stem.split("/")
        for depth, folder in enumerate(folders):
            if folder in called_mask:
                above, inner = folders[:depth], [*folders[depth + 1 :], _MASK_ENDING.sub("", file)]
                sources = [[other] for other in beside["/".join(above)] if _IMAGE_FOLDERS.match(other)] + [[]]
                if any("/".join([*above, *source, *inner]) in stems for source in sources):
                    found.add(name)
    return found


def count_left_out(left_out: LeftOut) -> dict[str, Any]:
    """Count files by reason: how many, of which suffixes, and the first as an example."""
    counted: dict[str, Any] = {}
    for name, reason in sorted(left_out):
        entry = counted.setdefault(reason, {"files": 0, "suffixes": Counter(), "example": name})
        entry["files"] += 1
        entry["suffixes"][PurePosixPath(name).suffix.lower() or "none"] += 1
    return {reason: {**entry, "suffixes": dict(entry["suffixes"].most_common())} for reason, entry in counted.items()}


def describe_left_out(counted: dict[str, Any]) -> list[str]:
    """Return a line for each reason, such as ``left out, a mask: 2 .png, such as a/masks/1.png``."""
    return [
        f"left out, {reason}: {', '.join(f'{n} {suffix}' for suffix, n in entry['suffixes'].items())}, "
        f"such as {entry['example']}"
        for reason, entry in counted.items()
    ]
