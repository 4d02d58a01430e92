"""Opens what a data root names: a folder, an archive or a table, here or elsewhere."""

from __future__ import annotations

from pathlib import Path

from xfeat.featurize.errors import DataError
from xfeat.featurize.sources.folder import FolderSource, local_file
from xfeat.featurize.sources.image_source import ImageSource
from xfeat.featurize.sources.zip_archive import ZipSource


def open_source(root: Path, *, broken_ok: bool = False) -> ImageSource:
    """Open a folder, or a zip archive if ``root`` is a file. Of a missing folder, no image can be read.

    Args:
        root: the folder or archive.
        broken_ok: open a file that is not a zip archive like a missing folder.

    Raises:
        DataError: if it is a file, but not a zip archive, or neither a folder nor a regular file.
    """
    refuse_pipes(root)
    try:
        return ZipSource(local_file(root)) if root.is_file() else FolderSource(root)
    except DataError:
        if not broken_ok:
            raise
        return FolderSource(root)


def refuse_pipes(path: Path) -> None:
    """Refuse what is there, but is neither a folder nor a regular file.

    Raises:
        DataError: if it is a pipe, a socket or a device.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise DataError(
            "neither a folder nor a regular file",
            path=path,
            found="a pipe, socket or device",
            fix="save its content in a file, and give that",
        )
