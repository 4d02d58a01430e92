"""One file that holds many images: opened, read by ranges, and compared with what it was."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import BinaryIO

from xfeat.featurize.sources.image_source import FileState, digest_mark
from xfeat.featurize.system.regular_files import open_regular
from xfeat.featurize.urls import Root


@dataclass(frozen=True)
class ContainerFile:
    """A file with images in it.

    Attributes:
        path: where it is, for messages.
        identity: what tells that it has changed: for the change marks of what is in it.
        size: bytes.
        mtime_ns: time of the last change, nanoseconds since 1970.
    """

    path: Root
    identity: tuple[object, ...]
    size: int
    mtime_ns: int

    def open(self) -> BinaryIO:
        """Open it for reading.

        Raises:
            OSError: if it cannot be opened.
        """
        return open_regular(self.path)

    def open_for(self, owner: object) -> BinaryIO:
        """Open it for reading as long as ``owner`` exists."""
        file = self.open()
        weakref.finalize(owner, file.close)
        return file

    def read_at(self, offset: int, size: int) -> bytes:
        """Return a part of it, less where it ends before.

        Raises:
            OSError: if it cannot be read.
        """
        with self.open() as file:
            file.seek(offset)
            return file.read(size)

    def state(self, *place: object, size: int | None = None, mtime_ns: int | None = None) -> FileState:
        """Return the state of what is at a place in it; size and time are by default its own."""
        mark = digest_mark(*self.identity, *place)
        return FileState(self.size if size is None else size, self.mtime_ns if mtime_ns is None else mtime_ns, mark)
