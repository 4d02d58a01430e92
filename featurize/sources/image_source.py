"""What every source of images offers, and the limits that all of them keep."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from xfeat.featurize.errors import DataError, ImageError, XfeatError
from xfeat.featurize.text import printable
from xfeat.featurize.urls import Root

# Larger than any image: 100 megapixels of RGB are 300 MB. Every decoding thread has one file in memory.
MAX_FILE_BYTES = 512 << 20
# A mount that does not answer, and a file system in user space whose process is stopped, would block for ever.
READ_LIMIT_S = 60.0
MOST_IN_A_ROW = 8
MAX_NAME = 4096  # as in file systems
# A small file may inflate a thousandfold, and a large one that does holds no images.
SMALL_BYTES, MAX_RATIO = 64 << 20, 20
# Reproducible archives date everything 1970; 0 has another meaning here.
EPOCH = 1
_LONGEST_REASON = 300


class FileState(NamedTuple):
    """A cheap check for whether a file has changed.

    Attributes:
        size: bytes; of a row of a table, those of the table.
        mtime_ns: time of the last change, nanoseconds since 1970; 0 if it was too recent to be relied on.
        change_mark: a number for what programs cannot set back, unlike the time: which file it is (file system and
            inode), and when its data or metadata last changed (``st_ctime_ns``; the time of creation on Windows). Of an
            object store: its ETag. Of a member of an archive or table: that of the file, with the CRC or place.
    """

    size: int
    mtime_ns: int
    change_mark: int


@dataclass(frozen=True)
class Records:
    """What a container says of its images.

    Attributes:
        names: of the images, in the container's order.
        columns: further values by name, a text per image; empty where there is none.
        labels: name of the column that is the label whatever it is called, or empty.
    """

    names: Sequence[str]
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    labels: str = ""


class ImageSource(ABC):
    """Image files by name, safe to use from several threads; a pickled copy opens its own files and connections.

    Attributes:
        doubts: what the user should know of how names were read.
        all_images: whether everything with a name is an image, whatever its name.
    """

    doubts: Sequence[str] = ()
    all_images: ClassVar[bool] = False
    _not_pickled: ClassVar[tuple[str, ...]] = ()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in self._not_pickled}

    @abstractmethod
    def names(self) -> Iterator[str]:
        """Yield the files, relative to the root, with forward slashes."""

    def records(self) -> Records | None:
        """Return what the container says of its images; ``None`` if only their names do."""
        return None

    @abstractmethod
    def state(self, path: str) -> FileState | None:
        """Return the state of a file without reading it, ``None`` if it does not exist."""

    @abstractmethod
    def read(self, path: str) -> tuple[bytes, FileState]:
        """Return a file's content and the state in which it was read.

        Raises:
            ImageError: if it cannot be read.
            DataError: if nothing can be read any more.
        """

    def head(self, path: str, size: int) -> bytes:
        """Return the first bytes of a file, at most ``size``; none if it cannot be read."""
        try:
            return self._start(path, size)
        except ImageError:
            return b""

    @abstractmethod
    def _start(self, path: str, size: int) -> bytes: ...

    @abstractmethod
    def order(self, path: str) -> tuple[str, int]:
        """Return a key: files are read fastest in its order."""


@contextmanager
def translating(what: str, *kinds: type[Exception], path: Root | None = None, **fields: str) -> Iterator[None]:
    """Translate what a library raises of a damaged file; it says why in its first line.

    Args:
        what: the problem.
        kinds: what the library raises.
        path: the file; without one, it is an image.
        fields: of the error, such as ``fix``.

    Raises:
        DataError: of a file.
        ImageError: of an image.
    """
    try:
        yield
    except XfeatError:
        raise
    except kinds as error:
        text = str(getattr(error, "strerror", None) or error) or type(error).__name__
        found = printable(text.splitlines()[0])[:_LONGEST_REASON]
        problem = ImageError(f"{what}: {found}") if path is None else DataError(what, path=path, found=found, **fields)
        raise problem from error


def safe_name(name: str) -> str:
    """Return a name from a container without what would lead out of its folder."""
    return "/".join(part for part in name.split("/") if part not in ("", ".", ".."))


def digest_mark(*told: object) -> int:
    """Return a change mark for what is told of a file."""
    return int.from_bytes(hashlib.blake2b(repr(told).encode(), digest_size=8).digest(), "little", signed=True)


def check_size(size: int) -> None:
    """Refuse a file that is larger than any image.

    Raises:
        ImageError: if it is.
    """
    if size > MAX_FILE_BYTES:
        raise ImageError(f"{size / (1 << 20):.0f} MB is more than the limit of {MAX_FILE_BYTES >> 20} MB")
