"""Which image files the paths on a command line mean."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from featurize.dataset import IMAGE_SUFFIXES
from featurize.errors import DataError


def list_images(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return the files named, and in place of each folder the images below it, sorted by path.

    A file is taken whatever its name ends in; in folders the suffix decides, and hidden files are left out.

    Raises:
        DataError: if a path does not exist, cannot be listed, or is a folder without images.
    """
    return [image for path in paths for image in _images_of(Path(path))]


def _images_of(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.exists():
        raise DataError("no such file or folder", path=path, mend="check the path")
    images = sorted(_images_below(path))
    if not images:
        raise DataError(
            "no images found",
            path=path,
            expected=f"files that end in {', '.join(sorted(IMAGE_SUFFIXES))}",
            mend="name another folder, or the files themselves",
        )
    return images


def _images_below(folder: Path) -> Iterator[Path]:
    def stop(error: OSError) -> None:
        raise DataError(f"cannot be listed: {error.strerror}", path=error.filename) from error

    visited: set[str] = set()
    for directory, subfolders, files in os.walk(folder, onerror=stop, followlinks=True):
        # A link to a folder above would otherwise be followed round and round.
        visited.add(os.path.realpath(directory))
        subfolders[:] = [
            name
            for name in subfolders
            if not name.startswith(".") and os.path.realpath(os.path.join(directory, name)) not in visited
        ]
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                yield Path(directory, name)
