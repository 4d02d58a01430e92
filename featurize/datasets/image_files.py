"""Finds the image files of the paths on a command line."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from xfeat.featurize.datasets.layouts import IMAGE_SUFFIXES, image_names
from xfeat.featurize.datasets.sources import FolderSource
from xfeat.featurize.errors import DataError


def list_images(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return the given files, and for each folder the images in it and its subfolders, sorted by path.

    A given file is taken whatever its suffix; in folders the suffix decides, and hidden files are ignored.

    Raises:
        DataError: if a path does not exist, cannot be listed, or is a folder without images.
    """
    return [image for path in paths for image in _images_of(Path(path))]


def _images_of(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.exists():
        raise DataError("file or folder not found", path=path, fix="check the path")
    images = sorted(path / name for name in image_names(FolderSource(path)))
    if not images:
        raise DataError(
            "no images found",
            path=path,
            expected=f"files that end in {', '.join(sorted(IMAGE_SUFFIXES))}",
            fix="give another folder, or the files themselves",
        )
    return images
