"""Opens what a file contains: a zip or tar archive, or a table; files in a folder may be such containers, too."""

from __future__ import annotations

import gzip
import logging
import re
import shutil
import threading
import zlib
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from xfeat.featurize.errors import DataError
from xfeat.featurize.sources.container_file import ContainerFile
from xfeat.featurize.sources.image_source import MAX_RATIO, SMALL_BYTES, FileState, ImageSource, translating
from xfeat.featurize.sources.parquet_table import ParquetSource
from xfeat.featurize.sources.tar_archive import TarSource
from xfeat.featurize.sources.zip_archive import ZipSource
from xfeat.featurize.system.atomic import output_error
from xfeat.featurize.system.regular_files import open_regular
from xfeat.featurize.system.user_cache import temporary_folder

logger = logging.getLogger(__name__)

_CONTAINER = re.compile(r".+\.(?:tar|tgz|tar\.gz|parquet|zip)", re.IGNORECASE)
_INNER = re.compile(rf"({_CONTAINER.pattern.replace('+', '+?', 1)})/(.+)", re.IGNORECASE | re.DOTALL)
_MAGIC_AT, _MAGIC = 257, b"ustar"
_OTHER_PACKERS = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "Zstandard", b"7z\xbc\xaf": "7-Zip"}
_OTHER_PACKERS |= {b"Rar!": "RAR"}
_CHUNK_BYTES = 1 << 20
_SPARE_BYTES = 1 << 30  # of the disk with temporary files


def is_container(name: str) -> bool:
    """Tell whether a file is called like an archive or a table with images."""
    return bool(_CONTAINER.fullmatch(name))


def open_container(file: ContainerFile, beside: ImageSource | None = None) -> ImageSource:
    """Open a file with images, by its first bytes.

    Args:
        file: the archive or table.
        beside: what lies in its folder, for tables that only name files.

    Raises:
        DataError: if it is of another kind, damaged, or made to inflate.
    """
    with translating("cannot be read", OSError, path=file.path, fix="check the file"):
        start = file.read_at(0, 512)
    if start.startswith(b"PAR1"):
        return ParquetSource(file, beside)
    if packer := next((name for magic, name in _OTHER_PACKERS.items() if start.startswith(magic)), ""):
        expected = "zip, tar or tar.gz"
        raise DataError(f"packed with {packer}", path=file.path, expected=expected, fix="pack it as one of these")
    if start.startswith(b"\x1f\x8b"):
        return TarSource(temporary_copy(file, _inflate))
    if start[_MAGIC_AT:].startswith(_MAGIC) or str(file.path).lower().endswith(".tar"):
        return TarSource(file)
    return ZipSource(file)


class Folder(ImageSource):
    """Files in a folder, and in the containers there: each is opened when a file in it is asked for first."""

    _not_pickled = ("_lock",)

    def __init__(self) -> None:
        self._opened: dict[str, ImageSource | None] = {}
        self._lock = threading.RLock()

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.RLock())

    def container(self, name: str) -> ImageSource | None:
        """Return the archive or table of a name, ``None`` if it is not there.

        Raises:
            DataError: if it cannot be read.
        """
        with self._lock:
            if name not in self._opened:
                file = self._file(name)
                self._opened[name] = None if file is None else open_container(file, self)
            return self._opened[name]

    def _inner(self, path: str) -> tuple[ImageSource, str] | None:
        """Return the container in which a path lies, and its name there; ``None`` for a file of the folder itself."""
        found = _INNER.fullmatch(path)
        container = self.container(found[1]) if found else None
        return (container, found[2]) if found and container is not None else None

    def state(self, path: str) -> FileState | None:
        """Return the state of a file without opening it, ``None`` if it does not exist."""
        return inner[0].state(inner[1]) if (inner := self._inner(path)) else self._own_state(path)

    def read(self, path: str) -> tuple[bytes, FileState]:
        """Return a file's content and the state in which it was read, or at an address listed.

        Raises:
            ImageError: if it cannot be read, is not there, or is too large.
            DataError: if there is no answer.
        """
        return inner[0].read(inner[1]) if (inner := self._inner(path)) else self._own_content(path)

    def head(self, path: str, size: int) -> bytes:
        """Return the first bytes of a file, at most ``size``; none if it cannot be read."""
        return inner[0].head(inner[1], size) if (inner := self._inner(path)) else super().head(path, size)

    def order(self, path: str) -> tuple[str, int]:
        """Return the container of a file and where in it the file is; files of its own are as good in any order."""
        inner = self._inner(path)
        return (path.removesuffix(inner[1]), inner[0].order(inner[1])[1]) if inner else ("", 0)

    @abstractmethod
    def _file(self, name: str) -> ContainerFile | None: ...

    @abstractmethod
    def _own_state(self, path: str) -> FileState | None: ...

    @abstractmethod
    def _own_content(self, path: str) -> tuple[bytes, FileState]: ...


# Copies on the disk


@dataclass(frozen=True)
class TemporaryCopy(ContainerFile):
    """A file that was inflated or fetched: in a temporary folder, made again where that is not there."""

    original: ContainerFile
    make: Callable[[ContainerFile, BinaryIO], None]
    place: Path

    def open(self) -> BinaryIO:
        """Open the copy for reading."""
        if self.place.is_file():
            return open_regular(self.place)
        return open_regular(temporary_copy(self.original, self.make).place)


_copies: dict[tuple[object, ...], tuple[TemporaryDirectory[str], TemporaryCopy]] = {}
_copying = threading.Lock()


def temporary_copy(original: ContainerFile, make: Callable[[ContainerFile, BinaryIO], None]) -> TemporaryCopy:
    """Return a copy of a file, which lasts as long as this process.

    Args:
        original: the file.
        make: writes the copy; called once.

    Raises:
        DataError: if the original cannot be read.
        OutputError: if the copy cannot be written.
    """
    key = (str(original.path), *original.identity)
    with _copying:
        if key not in _copies:
            folder = temporary_folder()
            place = Path(folder.name) / "copy"
            try:
                with place.open("wb") as file:
                    make(original, file)
            except DataError:
                folder.cleanup()
                raise
            except OSError as error:
                folder.cleanup()
                raise output_error(place, error, elsewhere="set TMPDIR to another folder") from error
            size = place.stat().st_size
            copy = TemporaryCopy(original.path, original.identity, size, original.mtime_ns, original, make, place)
            _copies[key] = folder, copy
        return _copies[key][1]


def room_for(file: BinaryIO, size: int, path: object) -> None:
    """Refuse to fill the disk.

    Raises:
        DataError: if so many more bytes would leave too little free.
    """
    free = shutil.disk_usage(Path(file.name).parent).free
    if size > free - _SPARE_BYTES:
        raise DataError(
            "no room for a temporary copy",
            path=str(path),
            expected=f"{(size + _SPARE_BYTES) >> 20} MB free in {Path(file.name).parent.parent}",
            found=f"{free >> 20} MB",
            fix="set TMPDIR to a folder with more room, or unpack the archive",
        )


def _inflate(original: ContainerFile, target: BinaryIO) -> None:
    logger.info("%s is inflated to a temporary file; a tar without compression is read where it is", original.path)
    most, done, path = max(SMALL_BYTES, MAX_RATIO * original.size), 0, original.path
    kinds = gzip.BadGzipFile, EOFError, zlib.error
    damaged = translating("the gzip file is damaged or cut short", *kinds, path=path, fix="download it again")
    with damaged, original.open() as packed, gzip.GzipFile(fileobj=packed) as file:
        while chunk := file.read(_CHUNK_BYTES):
            done += len(chunk)
            if done > most:
                raise DataError(
                    f"inflates to more than {most >> 20} MB",
                    path=path,
                    expected=f"at most {MAX_RATIO} times its size",
                    fix="unpack the archive if you trust it",
                )
            if done % (64 * _CHUNK_BYTES) < _CHUNK_BYTES:
                room_for(target, _CHUNK_BYTES * 64, path)
            target.write(chunk)
