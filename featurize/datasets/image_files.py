"""Which image files the paths on a command line mean."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from xfeat.featurize.datasets.layouts import IMAGE_SUFFIXES, names_in_folder
from xfeat.featurize.errors import DataError


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
        raise DataError("no such file or folder", path=path, fix="check the path")
    images = sorted(path / name for name in names_in_folder(path))
    if not images:
        raise DataError(
            "no images found",
            path=path,
            expected=f"files that end in {', '.join(sorted(IMAGE_SUFFIXES))}",
            fix="name another folder, or the files themselves",
        )
    return images
