"""Image files in a folder, and the containers in it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from xfeat.featurize.errors import DataError
from xfeat.featurize.sources.container_file import ContainerFile
from xfeat.featurize.sources.containers import Folder
from xfeat.featurize.sources.image_source import (
    EPOCH,
    MOST_IN_A_ROW,
    READ_LIMIT_S,
    FileState,
    check_size,
    digest_mark,
    translating,
)
from xfeat.featurize.system.regular_files import open_regular
from xfeat.featurize.system.time_limit import limited

_HEAD_BYTES = 1 << 16
# A file that changed so shortly before it was read can change again with the same time and size. FAT has steps of 2 s.
_SETTLED_NS = 2_000_000_000
_file_systems: dict[int, int] = {}

logger = logging.getLogger(__name__)


class FolderSource(Folder):
    """Files below a folder."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._root = os.path.abspath(root)  # processes elsewhere open it, too

    def names(self) -> Iterator[str]:
        """Yield the files, relative to the folder with forward slashes, except those in hidden folders.

        Symbolic links to folders are followed, unless they point to a folder that contains them. Each is followed
        once, even if other links lead to its folder: the number of ways through linked folders has no limit.

        Raises:
            DataError: if a folder cannot be listed.
        """
        followed: set[str] = set()
        again: list[str] = []
        for directory, subfolders, files in os.walk(self._root, followlinks=True, onerror=_cannot_list):
            subfolders[:] = sorted(
                name
                for name in subfolders
                if not name.startswith(".") and _is_new(os.path.join(directory, name), followed, again)
            )
            prefix = os.path.relpath(directory, self._root).replace(os.sep, "/")
            yield from files if prefix == "." else (f"{prefix}/{name}" for name in files)
        if again:
            logger.warning(
                "%d symbolic links to folders were reached more than once and followed only the first time, such as %s",
                len(again),
                again[0],
            )

    def _file(self, name: str) -> ContainerFile | None:
        path = Path(self._root, name)
        return local_file(path) if path.is_file() else None

    def _own_state(self, path: str) -> FileState | None:
        with suppress(OSError, ValueError):
            found = os.stat(file := os.path.join(self._root, path))
            return FileState(found.st_size, found.st_mtime_ns or EPOCH, digest_mark(*_identity(file, found)))
        return None

    def _own_content(self, path: str) -> tuple[bytes, FileState]:
        return read_file(os.path.join(self._root, path))

    def _start(self, path: str, size: int) -> bytes:
        return _read(os.path.join(self._root, path), size)[0]


def read_file(path: str | os.PathLike[str]) -> tuple[bytes, FileState]:
    """Return the content of an image file and the state in which it was read.

    Raises:
        ImageError: if it cannot be read, is not a regular file, is too large, or is not read in time.
    """
    data, found = _read(path)
    mtime_ns = (found.st_mtime_ns or EPOCH) if _settled(found) else 0
    return data, FileState(len(data), mtime_ns, digest_mark(*_identity(path, found)))


@limited(READ_LIMIT_S, "read", most_in_a_row=MOST_IN_A_ROW)
def _read(path: str | os.PathLike[str], size: int | None = None) -> tuple[bytes, os.stat_result]:
    """Return the first bytes of a file, at most ``size``; by default the whole file."""
    with translating("cannot be read", OSError, ValueError), open_regular(path) as file:
        found = os.fstat(file.fileno())
        if size is None:
            check_size(found.st_size)
        # Not more than there is: Python reserves what it is asked to read.
        whole = max(found.st_size, _HEAD_BYTES) + 1
        return file.read(whole if size is None else min(size, whole)), found


def local_file(path: Path) -> ContainerFile:
    """Return a file of this machine that holds images.

    Raises:
        OSError: if it cannot be opened, or is not a regular file.
    """
    with open_regular(path) as file:
        found = os.fstat(file.fileno())
    return ContainerFile(path, _identity(path, found), found.st_size, found.st_mtime_ns or EPOCH)


def _cannot_list(error: OSError) -> None:
    # os.walk would skip the folder silently.
    fix = "check its permissions, or move it away"
    raise DataError(f"cannot be listed: {error.strerror}", path=error.filename, fix=fix) from error


def _is_new(path: str, followed: set[str], again: list[str]) -> bool:
    """Tell whether a subfolder is to be listed: no link to a folder that contains it, nor one that was followed."""
    if not os.path.islink(path):
        return True
    directory, name = os.path.split(path)
    target, real = os.path.realpath(path), os.path.realpath(directory)
    passed = (real, *(os.path.realpath(folder) for folder in Path(directory).parents))
    if any(os.path.commonpath([target, folder]) == target for folder in passed):
        return False
    link = os.path.join(real, name)
    if link in followed:
        again.append(path)
        return False
    followed.add(link)
    return True


def _identity(path: str | os.PathLike[str], found: os.stat_result) -> tuple[int, int, int]:
    """Return which file it is, and when its data or metadata last changed."""
    return _file_system(path, found.st_dev), found.st_ino, found.st_ctime_ns


def _file_system(path: str | os.PathLike[str], device: int) -> int:
    """Return a number of a file system that, unlike that of its device, other machines and a restart do not change."""
    if device not in _file_systems:
        try:
            _file_systems[device] = os.statvfs(path).f_fsid
        except (AttributeError, OSError):  # Windows, where the number of the device belongs to the file system
            _file_systems[device] = device
    return _file_systems[device]


def _settled(found: os.stat_result) -> bool:
    """Tell whether a file had not changed for long enough when it was read. Clocks of other machines do not matter."""
    is_known = found.st_ino != 0  # some file systems do not tell files apart
    return is_known and time.time_ns() - min(found.st_mtime_ns, found.st_ctime_ns) > _SETTLED_NS
