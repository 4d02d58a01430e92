"""Writes the files of a split: new names, links or copies, groups.csv; the folder appears whole or not at all."""

from __future__ import annotations

import csv
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.datasets.file_lookup import name_as_text
from xfeat.featurize.datasets.layouts import GROUPS_FILE, SPLITS, Dataset, ImageEntry
from xfeat.featurize.errors import Interrupted
from xfeat.featurize.sources.image_source import ImageSource
from xfeat.featurize.system.atomic import output_error
from xfeat.featurize.system.filesystem import TIMES, optional

logger = logging.getLogger(__name__)

COLUMNS_FILE = "metadata.csv"


class PlacedImage(NamedTuple):
    """The new path of one image: ``entry`` of the source goes to ``path`` in the target."""

    entry: ImageEntry
    path: str
    split: int
    group: str


def place_images(dataset: Dataset, splits: NDArray[np.uint8], groups: NDArray[np.int64]) -> list[PlacedImage]:
    """Choose new paths; for files of the same name, the name of the folder is put in front.

    Args:
        dataset: the images, n of them.
        splits: uint8 (n,), index into train, valid, test.
        groups: int64 (n,), equal for images of one group.

    Returns:
        One record per image, sorted by new path.
    """
    name_of: dict[int, str] = {}
    for entry, group in zip(dataset.entries, groups.tolist(), strict=True):
        if entry.group and entry.group != name_of.setdefault(group, entry.group):
            logger.warning("groups %s and %s share an image and are merged", name_of[group], entry.group)
    images, taken = [], set()
    for entry, split, group in zip(dataset.entries, splits.tolist(), groups.tolist(), strict=True):
        folder = f"{SPLITS[split]}/{dataset.class_names[entry.label]}"
        path = f"{folder}/{(parts := entry.path.split('/'))[-1]}"
        depth = 1
        # Case is ignored: the files may be copied to a file system that does.
        while path.casefold() in taken:
            depth += 1
            flat = "-".join(part for part in parts[-depth:] if part != "..")
            path = f"{folder}/{flat}" if depth <= len(parts) else f"{folder}/{depth}-{flat}"
        taken.add(path.casefold())
        images.append(PlacedImage(entry, path, split, name_of.get(group, "")))
    return sorted(images, key=lambda image: image.path)


def write_split(
    dataset: Dataset,
    source: ImageSource,
    output: Path,
    images: list[PlacedImage],
    *,
    link: bool,
    step: Callable[[int], None],
) -> int:
    """Fill a folder beside ``output`` and rename it; write groups.csv if images have groups, and metadata.csv if they
    have further columns.

    Args:
        dataset: the images.
        source: where the files are.
        output: a folder that does not exist or is empty.
        images: the new path of each image.
        link: make hard links where the file system can.
        step: called with the number of files placed.

    Returns:
        How many files are links.

    Raises:
        OutputError: if something cannot be written.
        Interrupted: on Ctrl-C; nothing is left behind.
    """
    partial = output.parent / f".{output.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    linked = 0
    try:
        for number, image in enumerate(images, start=1):
            target = partial / image.path
            target.parent.mkdir(parents=True, exist_ok=True)
            if not (isinstance(dataset.root, Path) and (dataset.root / image.entry.path).is_file()):
                target.write_bytes(source.read(image.entry.path)[0])
            else:
                file = (dataset.root / image.entry.path).resolve()
                linked += _place_file(file, target, link and linked == number - 1)
            step(number)
        if link and linked < len(images):
            logger.warning("cannot link to files in %s: %d files were copied", dataset.root, len(images) - linked)
        if grouped := [image for image in images if image.group]:
            labels = dataset.class_names
            rows = [(name_as_text(path), labels[entry.label], name_as_text(group)) for entry, path, _, group in grouped]
            _write_table(partial / GROUPS_FILE, ("path", "label", "group"), rows)
        if dataset.columns:
            header = ("path", *(column.name for column in dataset.columns))
            texts = [(name_as_text(image.path), *image.entry.further) for image in images]
            _write_table(partial / COLUMNS_FILE, header, texts)
        if output.exists():
            output.rmdir()
        os.rename(partial, output)
    except OSError as error:
        raise output_error(output, error, elsewhere="choose another DST") from error
    except KeyboardInterrupt as error:
        raise Interrupted("stopped; nothing was written", path=output, fix="run the same command again") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return linked


def _place_file(source: Path, target: Path, link: bool) -> bool:
    if link:
        # Another file system, or one without links; if the disk is full, the copy fails too.
        with suppress(OSError):
            os.link(source, target)
            return True
    # Not copy2: it also copies permissions, which many mounts refuse.
    shutil.copyfile(source, target)
    state = source.stat()
    with optional(TIMES, target):
        os.utime(target, ns=(state.st_atime_ns, state.st_mtime_ns))
    return False


def _write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
