"""Images to classify, whatever their labels: files, folders, archives, tables, patterns and addresses of them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple, cast

from xfeat.featurize.datasets.column_choice import AS_WRITTEN, ColumnChoice
from xfeat.featurize.datasets.described import match_shards, split_pattern
from xfeat.featurize.datasets.image_files import IMAGE_SUFFIXES, count_left_out, describe_left_out, image_names
from xfeat.featurize.datasets.layouts import is_table, remote_table
from xfeat.featurize.datasets.manifest import read_paths
from xfeat.featurize.errors import DataError
from xfeat.featurize.sources.containers import Folder, is_container
from xfeat.featurize.sources.folder import FolderSource
from xfeat.featurize.sources.image_source import ImageSource
from xfeat.featurize.sources.opening import open_source, refuse_pipes
from xfeat.featurize.urls import Root, Url

logger = logging.getLogger(__name__)


class Images(NamedTuple):
    """Images that one source reads.

    Attributes:
        root: what their names are relative to.
        source: reads them.
        names: of the images.
        header: the names of the columns, if a table names the images.
    """

    root: Root
    source: ImageSource
    names: Sequence[str]
    header: Sequence[str] = ()


def open_images(data: str | os.PathLike[str], *, recursive: bool = True, columns: ColumnChoice = AS_WRITTEN) -> Images:
    """List the images of a file, folder, archive, table or pattern, here or at an address. Labels do not matter.

    A file is taken whatever its suffix, unless it is called like an archive or a table; its name is its path. Files in
    folders and archives that are no images are left out, and counted in the log. Of a folder with nothing but archives,
    the images are those in the archives.

    Args:
        data: what to open.
        recursive: search the folders in a folder or archive, too.
        columns: what the user says of the columns of a table.

    Raises:
        DataError: if it is not there, cannot be listed or read, or has no image.
    """
    root, pattern = split_pattern(data)
    if isinstance(root, Path):
        _require_there(root)
        if root.is_file() and not is_table(root.name) and not is_container(root.name):
            return Images(Path(), FolderSource(Path()), [str(root)])
    if not pattern and is_table(root.name) and (isinstance(root, Url) or root.is_file()):
        folder, content = remote_table(root) if isinstance(root, Url) else (None, None)
        names, header = read_paths(cast(Path, root), columns, content, folder)
        return Images(root.parent, folder or FolderSource(cast(Path, root.parent)), names, header)
    source = open_source(root)
    if pattern:
        names, shards = [], match_shards(root, pattern, list(source.names()))
    else:
        names, shards = _images_of(source, recursive)
    if shards and isinstance(source, Folder):
        opened = {shard: source.container(shard) for shard in shards}
        names = [f"{at}/{name}" for at, inner in opened.items() if inner for name in _images_of(inner, recursive)[0]]
    if not names:
        raise _no_images(root, recursive)
    return Images(root, source, names)


def list_images(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return the given file or files, and for each folder the images in it and its subfolders, sorted by path.

    A given file is taken whatever its suffix; in folders the suffix decides, or without one the first bytes. Hidden
    files are ignored.

    Raises:
        DataError: if a path does not exist, cannot be listed, or is a folder without images.
    """
    found: list[Path] = []
    for path in map(Path, [paths] if isinstance(paths, str | os.PathLike) else paths):
        _require_there(path)
        images = [path] if path.is_file() else [path / name for name in _images_of(FolderSource(path), True)[0]]
        if not images:
            raise _no_images(path)
        found += images
    return found


def _require_there(path: Path) -> None:
    try:
        path.stat()
    except OSError as error:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise DataError(f"cannot be opened: {error.strerror}", path=path, fix="check the path") from error
        found = "a symbolic link that leads nowhere" if path.is_symlink() else None
        raise DataError("file or folder not found", path=path, found=found, fix="check the path") from error
    refuse_pipes(path)


def _no_images(root: Root, recursive: bool = True) -> DataError:
    return DataError(
        "no images found",
        path=root,
        expected=f"files that end in {', '.join(sorted(IMAGE_SUFFIXES))}",
        fix=f"{'' if recursive else 'leave out --no-recursive, '}give another folder, or the files themselves",
    )


def _images_of(source: ImageSource, recursive: bool) -> tuple[list[str], list[str]]:
    """Return the images, or the archives if there are no images: by name, but in an archive as it is read fastest."""
    listed = source.names()
    if isinstance(source, FolderSource) and not recursive:  # which lists its own files first
        listed = takewhile(lambda name: "/" not in name, listed)
    if source.all_images:
        names, left_out = list(listed), list[tuple[str, str]]()
    else:
        names, left_out = image_names((name for name in listed if recursive or "/" not in name), source.head)
    names.sort()
    if not isinstance(source, Folder):
        names.sort(key=source.order)
    shards = [] if names else sorted(name for name, _ in left_out if is_container(name))
    for line in describe_left_out(count_left_out([each for each in left_out if each[0] not in shards])):
        logger.info("%s", line)
    for doubt in source.doubts:
        logger.warning("%s", doubt)
    return names, shards
