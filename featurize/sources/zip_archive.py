"""Images in a zip archive, which is never unpacked."""

from __future__ import annotations

import calendar
import errno
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import PureWindowsPath

from xfeat.featurize.errors import DataError, ImageError
from xfeat.featurize.sources.container_file import ContainerFile
from xfeat.featurize.sources.image_source import (
    EPOCH,
    MAX_NAME,
    MAX_RATIO,
    MOST_IN_A_ROW,
    READ_LIMIT_S,
    SMALL_BYTES,
    FileState,
    ImageSource,
    check_size,
    translating,
)
from xfeat.featurize.system.time_limit import TimeLimitError, limited
from xfeat.featurize.text import quote
from xfeat.featurize.urls import Root

_ENCRYPTED, _UTF8_NAME = 0x1, 0x800
# Lines for drawing boxes, and Greek and mathematical signs: half of CP437, and in names a sign of another encoding.
_NO_NAME_IN_CP437 = re.compile("[\u0370-\u03ff\u2200-\u25ff]")
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
# Source: APPNOTE.TXT of PKWARE, 4.4.5. Python reads some of them, without a limit on what a few bytes inflate to.
_OTHER_METHODS = {9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "xz", 98: "PPMd", 99: "AES encryption"}
_LOCAL_HEADER_BYTES = 30
_BROKEN = (OSError, RuntimeError, EOFError, ValueError, zipfile.BadZipFile, zlib.error)


class ZipSource(ImageSource):
    """Members of a zip archive. Nothing is unpacked: names such as ``../x`` reach no file.

    Attributes:
        doubts: what the user should know of how names were read.

    Raises:
        DataError: if the file is not a zip archive, is not read in time, or its files share bytes.
    """

    _not_pickled = ("_archive",)

    def __init__(self, file: ContainerFile) -> None:
        self._file, path = file, file.path
        expected = "a folder, an archive (zip, tar), a parquet table or a CSV file"
        fix = "check the file: its end may be missing, or it is of another kind"
        kinds = *_BROKEN, OverflowError, MemoryError
        try:
            with translating("not a zip archive", *kinds, path=path, expected=expected, fix=fix):
                infos = self._archive.infolist()
        except TimeLimitError as error:
            raise DataError(f"its list of files was {error.what}", path=path, fix="check the disk or mount") from error
        members = [info for info in infos if not info.filename.endswith(("/", "\\"))]
        _refuse_impossible(path, members)
        names, self.doubts = _member_names(members)
        self._members = dict(zip(names, members, strict=True))
        if again := len(names) - len(self._members):
            self.doubts.append(f"names that the archive has more than once, of which the last file is read: {again}")

    @cached_property
    def _archive(self) -> zipfile.ZipFile:
        return limited(READ_LIMIT_S, "read")(zipfile.ZipFile)(self._file.open_for(self))

    def order(self, path: str) -> tuple[str, int]:
        """Return where a member starts."""
        info = self._members.get(path)
        return "", info.header_offset if info is not None else 0

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

    def _start(self, path: str, size: int) -> bytes:
        return self._unpack(self._members[path], size)

    def _state(self, info: zipfile.ZipInfo) -> FileState:
        # Zip times have steps of 2 s, start in 1980, and have no time zone; some programs write none.
        seconds = 0
        with suppress(ValueError):
            seconds = calendar.timegm((*info.date_time, 0, 0, 0))
        return self._file.state(info.CRC, size=info.file_size, mtime_ns=seconds * 1_000_000_000 or EPOCH)

    @limited(READ_LIMIT_S, "read", most_in_a_row=MOST_IN_A_ROW)
    def _unpack(self, info: zipfile.ZipInfo, size: int) -> bytes:
        if info.flag_bits & _ENCRYPTED:
            raise ImageError("encrypted in the archive: unpack it with its password, and use the folder")
        if info.compress_type not in _METHODS:
            method = _OTHER_METHODS.get(info.compress_type, f"method {info.compress_type}")
            raise ImageError(f"compressed with {method} in the archive: pack it with Deflate, or use the folder")
        check_size(info.file_size)
        if info.file_size > max(SMALL_BYTES, MAX_RATIO * info.compress_size):
            ratio = info.file_size // max(1, info.compress_size)
            raise ImageError(f"inflates to {info.file_size >> 20} MB, {ratio} times its size in the archive")
        with translating("cannot be read from the archive", *_BROKEN), self._archive.open(info) as file:
            return file.read(size)


def _refuse_impossible(path: Root, members: list[zipfile.ZipInfo]) -> None:
    """Refuse an archive in which files share bytes, so that few bytes hold many files, and endless names."""
    end = 0
    for info in sorted(members, key=lambda info: info.header_offset):
        problem = "files of the archive share the same bytes" if info.header_offset < end else ""
        if len(info.filename) > MAX_NAME:
            problem = f"the archive has a name of {len(info.filename)} characters"
        if problem:
            raise DataError(
                problem,
                path=path,
                expected=f"files one after the other, with names of at most {MAX_NAME} characters",
                found=quote(info.filename),
                fix="pack the images again",
            )
        end = info.header_offset + _LOCAL_HEADER_BYTES + info.compress_size


def _member_names(members: list[zipfile.ZipInfo]) -> tuple[list[str], list[str]]:
    """Return relative names with forward slashes, decoded as the program that wrote them meant them, and doubts."""
    names = [info.filename for info in members]
    # Without the flag zipfile decodes as CP437; macOS writes UTF-8 nevertheless, and Windows in China GB 2312 or GBK.
    unmarked = [n for n, info in enumerate(members) if not info.flag_bits & _UTF8_NAME and not names[n].isascii()]
    strange = [n for n in unmarked if _NO_NAME_IN_CP437.search(names[n])]
    for chosen in ("UTF-8", "GB2312", *["GBK"] * bool(strange), "CP437"):
        with suppress(UnicodeError):
            for n, name in [(n, names[n].encode("cp437").decode(chosen)) for n in unmarked]:
                names[n] = name
            break
    doubt = f"the archive does not say how its names are encoded; they are read as {chosen}, such as "
    doubts = [doubt + names[strange[0]]] if strange and chosen in ("CP437", "GBK") else []
    paths = [PureWindowsPath(name) for name in names]  # knows both slashes, and drives
    return ["/".join(part for part in path.relative_to(path.anchor).parts if part != ".") for path in paths], doubts
