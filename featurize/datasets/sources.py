"""Reads image files from a folder, or from a zip archive without unpacking it."""

from __future__ import annotations

import calendar
import errno
import hashlib
import logging
import os
import re
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from xfeat.featurize.errors import DataError, ImageError
from xfeat.featurize.system.regular_files import open_regular
from xfeat.featurize.system.time_limit import TimeLimitError, limited
from xfeat.featurize.text import quote

# Larger than any image: 100 megapixels of RGB are 300 MB. Every decoding thread has one file in memory.
MAX_FILE_BYTES = 512 << 20
# A mount that does not answer, and a file system in user space whose process is stopped, would block for ever.
_READ_LIMIT_S = 60.0
_MOST_IN_A_ROW = 8
_HEAD_BYTES = 1 << 16
# A file that changed so shortly before it was read can change again with the same time and size. FAT has steps of 2 s.
_SETTLED_NS = 2_000_000_000
# Reproducible archives date everything 1970; 0 has another meaning here.
_EPOCH = 1
_file_systems: dict[int, int] = {}
_ENCRYPTED, _UTF8_NAME = 0x1, 0x800
# Lines for drawing boxes, and Greek and mathematical signs: half of CP437, and in names a sign of another encoding.
_NO_NAME_IN_CP437 = re.compile("[\u0370-\u03ff\u2200-\u25ff]")
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
# Source: APPNOTE.TXT of PKWARE, 4.4.5. Python reads some of them, without a limit on what a few bytes inflate to.
_OTHER_METHODS = {9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "xz", 98: "PPMd", 99: "AES encryption"}
_LOCAL_HEADER_BYTES = 30
_MAX_NAME = 4096  # as in file systems
# A small image may inflate a thousandfold, and a large one that does is no image.
_SMALL_BYTES, _MAX_RATIO = 64 << 20, 20
_BROKEN = (OSError, RuntimeError, EOFError, ValueError, zipfile.BadZipFile, zlib.error)

logger = logging.getLogger(__name__)


class FileState(NamedTuple):
    """A cheap check for whether a file has changed.

    Attributes:
        size: bytes.
        mtime_ns: time of the last change, nanoseconds since 1970; 0 if it was too recent to be relied on.
        change_mark: a number for what programs cannot set back, unlike the time: which file it is (file system and
            inode), and when its data or metadata last changed (``st_ctime_ns``; the time of creation on Windows). Of a
            zip member: that of the archive, with the member's CRC.
    """

    size: int
    mtime_ns: int
    change_mark: int


class FolderSource:
    """Files below a folder."""

    doubts: Sequence[str] = ()

    def __init__(self, root: Path) -> None:
        self._root = str(root)

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

    def state(self, path: str) -> FileState | None:
        """Return the state of a file without opening it, ``None`` if it does not exist."""
        file = os.path.join(self._root, path)
        try:
            found = os.stat(file)
        except (OSError, ValueError):
            return None
        return FileState(found.st_size, found.st_mtime_ns or _EPOCH, _change_mark(file, found))

    def read(self, path: str) -> tuple[bytes, FileState]:
        """Return a file's content and the state in which it was read.

        Raises:
            ImageError: if it cannot be read.
        """
        return read_file(os.path.join(self._root, path))

    def head(self, path: str, size: int) -> bytes:
        """Return the first bytes of a file, at most ``size``; none if it cannot be read."""
        try:
            return _read(os.path.join(self._root, path), size)[0]
        except ImageError:
            return b""


def read_file(path: str | os.PathLike[str]) -> tuple[bytes, FileState]:
    """Return the content of an image file and the state in which it was read.

    Raises:
        ImageError: if it cannot be read, is not a regular file, is too large, or is not read in time.
    """
    data, found = _read(path, MAX_FILE_BYTES + 1)
    mtime_ns = (found.st_mtime_ns or _EPOCH) if _settled(found) else 0
    return data, FileState(len(data), mtime_ns, _change_mark(path, found))


@limited(_READ_LIMIT_S, "read", most_in_a_row=_MOST_IN_A_ROW)
def _read(path: str | os.PathLike[str], size: int) -> tuple[bytes, os.stat_result]:
    """Return the first bytes of a file, at most ``size``; nothing of one that is larger than a size over the limit."""
    try:
        with open_regular(path) as file:
            found = os.fstat(file.fileno())
            too_large = found.st_size >= size > MAX_FILE_BYTES
            # Not more than there is: Python reserves what it is asked to read.
            data = b"" if too_large else file.read(min(size, max(found.st_size, _HEAD_BYTES) + 1))
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if too_large:
        raise _too_large(found.st_size)
    return data, found


def _cannot_list(error: OSError) -> None:
    # os.walk would skip the folder silently.
    raise DataError(
        f"cannot be listed: {error.strerror}", path=error.filename, fix="check its permissions, or move it away"
    ) from error


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


def _change_mark(path: str | os.PathLike[str], found: os.stat_result, *more: int) -> int:
    told = (_file_system(path, found.st_dev), found.st_ino, found.st_ctime_ns, *more)
    return int.from_bytes(hashlib.blake2b(repr(told).encode(), digest_size=8).digest(), "little", signed=True)


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
    if not found.st_ino:  # of file systems that do not tell files apart
        return False
    changed = found.st_ctime_ns if found.st_mtime_ns > found.st_ctime_ns else found.st_mtime_ns
    return time.time_ns() - changed > _SETTLED_NS


class ZipSource:
    """Members of a zip archive. Nothing is unpacked: names such as ``../x`` reach no file.

    Attributes:
        doubts: what the user should know of how names were read.

    Raises:
        DataError: if the file is not a zip archive, is not read in time, or its files share bytes.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._archive = limited(_READ_LIMIT_S, "read")(zipfile.ZipFile)(path)
        except TimeLimitError as error:
            raise DataError(f"its list of files was {error.what}", path=path, fix="check the disk or mount") from error
        except (*_BROKEN, OverflowError, MemoryError) as error:
            raise DataError(
                "not a zip archive",
                path=path,
                expected="a folder, a zip archive or a CSV file",
                found=str(error),
                fix="check the file: its end may be missing, or it is of another kind",
            ) from error
        assert self._archive.fp is not None
        self._mark = partial(_change_mark, path, os.fstat(self._archive.fp.fileno()))
        members = [info for info in self._archive.infolist() if not info.filename.endswith(("/", "\\"))]
        _refuse_impossible(path, members)
        names, self.doubts = _member_names(members)
        self._members = dict(zip(names, members, strict=True))
        if again := len(names) - len(self._members):
            self.doubts.append(f"names that the archive has more than once, of which the last file is read: {again}")

    def names(self) -> Iterator[str]:
        """Yield the members that are files."""
        yield from self._members

    def state(self, path: str) -> FileState | None:
        """Return the state of a member from the archive's directory, ``None`` if it does not exist."""
        info = self._members.get(path)
        return self._state(info) if info is not None else None

    def read(self, path: str) -> tuple[bytes, FileState]:
        """Return a member's content, checked against its CRC, and its state.

        Raises:
            ImageError: if it cannot be read.
        """
        info = self._members.get(path)
        if info is None:
            raise ImageError(f"cannot be read: {os.strerror(errno.ENOENT)} in the archive")
        # The size in the directory may be wrong: never unpack more than that.
        return self._unpack(info, info.file_size + 1), self._state(info)

    def head(self, path: str, size: int) -> bytes:
        """Return the first bytes of a member, at most ``size``; none if it cannot be read."""
        try:
            return self._unpack(self._members[path], size)
        except ImageError:
            return b""

    def _state(self, info: zipfile.ZipInfo) -> FileState:
        # Zip times have steps of 2 s, start in 1980, and have no time zone; some programs write none.
        seconds = 0
        with suppress(ValueError):
            seconds = calendar.timegm((*info.date_time, 0, 0, 0))
        return FileState(info.file_size, seconds * 1_000_000_000 or _EPOCH, self._mark(info.CRC))

    @limited(_READ_LIMIT_S, "read", most_in_a_row=_MOST_IN_A_ROW)
    def _unpack(self, info: zipfile.ZipInfo, size: int) -> bytes:
        if info.flag_bits & _ENCRYPTED:
            raise ImageError("encrypted in the archive: unpack it with its password, and use the folder")
        if info.compress_type not in _METHODS:
            method = _OTHER_METHODS.get(info.compress_type, f"method {info.compress_type}")
            raise ImageError(f"compressed with {method} in the archive: pack it with Deflate, or use the folder")
        if info.file_size > MAX_FILE_BYTES:
            raise _too_large(info.file_size)
        if info.file_size > max(_SMALL_BYTES, _MAX_RATIO * info.compress_size):
            ratio = info.file_size // max(1, info.compress_size)
            raise ImageError(f"inflates to {info.file_size >> 20} MB, {ratio} times its size in the archive")
        try:
            with self._archive.open(info) as file:
                return file.read(size)
        except _BROKEN as error:
            raise ImageError(f"cannot be read from the archive: {error}") from error


ImageSource = FolderSource | ZipSource
"""Image files by name, safe to use from several threads."""


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
        return ZipSource(root) if root.is_file() else FolderSource(root)
    except DataError:
        if not broken_ok:
            raise
        return FolderSource(root)


def _refuse_impossible(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Refuse an archive in which files share bytes, so that few bytes hold many files, and endless names."""
    end = 0
    for info in sorted(members, key=lambda info: info.header_offset):
        problem = "files of the archive share the same bytes" if info.header_offset < end else ""
        if len(info.filename) > _MAX_NAME:
            problem = f"the archive has a name of {len(info.filename)} characters"
        if problem:
            raise DataError(
                problem,
                path=path,
                expected=f"files one after the other, with names of at most {_MAX_NAME} characters",
                found=quote(info.filename),
                fix="pack the images again",
            )
        end = info.header_offset + _LOCAL_HEADER_BYTES + info.compress_size


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


def _member_names(members: list[zipfile.ZipInfo]) -> tuple[list[str], list[str]]:
    """Return relative names with forward slashes, decoded as the program that wrote them meant them, and doubts."""
    names = [info.filename for info in members]
    # Without the flag zipfile decodes as CP437; macOS writes UTF-8 nevertheless, and Windows in China GB 2312 or GBK.
    unmarked = [n for n, info in enumerate(members) if not info.flag_bits & _UTF8_NAME and not names[n].isascii()]
    strange = [n for n in unmarked if _NO_NAME_IN_CP437.search(names[n])]
    chosen = "CP437"
    for encoding in ("UTF-8", "GB2312", *["GBK"] * bool(strange)):
        with suppress(UnicodeError):
            decoded = [names[n].encode("cp437").decode(encoding) for n in unmarked]
            for n, name in zip(unmarked, decoded, strict=True):
                names[n] = name
            chosen = encoding
            break
    doubt = f"the archive does not say how its names are encoded; they are read as {chosen}, such as "
    doubts = [doubt + names[strange[0]]] if strange and chosen in ("CP437", "GBK") else []
    paths = [PureWindowsPath(name) for name in names]  # knows both slashes, and drives
    return ["/".join(part for part in path.relative_to(path.anchor).parts if part != ".") for path in paths], doubts


def _too_large(size: int) -> ImageError:
    return ImageError(f"{size / (1 << 20):.0f} MB is more than the limit of {MAX_FILE_BYTES >> 20} MB")
