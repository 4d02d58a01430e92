"""Images at an address: files that are read by ranges, and folders."""

from __future__ import annotations

import io
import logging
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, BinaryIO

from xfeat.featurize.errors import DataError, ImageError
from xfeat.featurize.sources.connection import Connection, NoRangesError
from xfeat.featurize.sources.container_file import ContainerFile
from xfeat.featurize.sources.containers import Folder, room_for, temporary_copy
from xfeat.featurize.sources.image_source import EPOCH, MAX_FILE_BYTES, FileState, check_size, digest_mark
from xfeat.featurize.urls import Url

logger = logging.getLogger(__name__)

_RANGE_BYTES, _CHUNK_BYTES = 1 << 20, 8 << 20
_ETAGS = ("ETag", "etag", "md5Hash", "content_md5", "Content-MD5", "checksum", "sha256", "blob_id")
_NO_STATE = "the server tells neither ETag nor time: every run reads all images again"
_TIMES = ("LastModified", "last_modified", "Last-Modified", "updated", "mtime", "modified", "created")


@dataclass(frozen=True)
class RemoteFile(ContainerFile):
    """A file at an address, read by ranges."""

    path: Url
    connection: Connection

    def open(self) -> BinaryIO:
        """Open it: parts of it are fetched as they are read."""
        return io.BufferedReader(_Ranges(self), _RANGE_BYTES)

    def read_at(self, offset: int, size: int) -> bytes:
        """Return a part of it, less where it ends before.

        Raises:
            OSError: if it is not there.
            DataError: if there is no answer.
        """
        end = min(offset + size, self.size)
        if offset >= end:
            return b""
        data = self.connection.part_of_large(self.path, self.size, offset, end)
        if len(data) != end - offset:
            raise DataError(
                "the server sends other bytes than it was asked for",
                path=self.path,
                expected=f"{end - offset} bytes from {offset} on",
                found=f"{len(data)} bytes",
                fix="download the file, and give its path",
            )
        return data


class _Ranges(io.RawIOBase):
    def __init__(self, file: RemoteFile) -> None:
        self._file, self._position = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}[whence]
        if start + offset < 0:
            raise ValueError("negative position")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = self._file.read_at(self._position, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def remote_file(connection: Connection, url: Url) -> ContainerFile | None:
    """Return a file at an address, ``None`` if there is none; one that cannot be read by ranges is fetched first.

    Raises:
        DataError: if there is no answer, or no room for the file.
    """
    info = connection.info(url)
    if info is None or info.get("type") == "directory":
        return None
    size, state = info.get("size") or 0, _state_of(info)
    identity: tuple[object, ...] = (state.size, state.change_mark) if state else (secrets.token_hex(8),)
    file = RemoteFile(url, identity, size, state.mtime_ns if state else EPOCH, connection)
    if state is None:
        logger.warning("%s: %s", url, _NO_STATE)
    with suppress(NoRangesError):
        file.read_at(1, 1)
        if size:
            return file
    return temporary_copy(file, _fetch)


def _fetch(original: ContainerFile, target: BinaryIO) -> None:
    assert isinstance(original, RemoteFile)
    connection, url = original.connection, original.path
    logger.info("%s: the server does not send parts of a file; all of it is fetched to a temporary file", url)

    def write(chunks: Iterator[bytes]) -> None:
        target.seek(0)
        target.truncate()
        room_for(target, original.size, url)
        for chunk in chunks:
            room_for(target, len(chunk), url)
            target.write(chunk)
        if original.size and target.tell() < original.size:
            raise OSError(f"the connection was cut after {target.tell()} of {original.size} bytes")

    connection.whole(url, write)


def _state_of(info: dict[str, Any]) -> FileState | None:
    """Return the state of a file from what is told of it, ``None`` if that is nothing but its size."""
    etag = next((str(info[name]) for name in _ETAGS if info.get(name)), "")
    changed = next((_nanoseconds(info[name]) for name in _TIMES if info.get(name)), 0)
    if not (etag or changed):
        return None
    size = int(info.get("size") or 0)
    return FileState(size, changed or EPOCH, digest_mark("etag", etag) if etag else digest_mark("time", size, changed))


def _nanoseconds(value: Any) -> int:
    try:
        if isinstance(value, str):
            value = parsedate_to_datetime(value) if "," in value else datetime.fromisoformat(value)
        seconds = value.timestamp() if isinstance(value, datetime) else float(value)
        return min(max(int(seconds * 1_000_000) * 1_000, 0), (1 << 63) - 1)
    except (ValueError, TypeError, OverflowError):
        return 0


class RemoteFolder(Folder):
    """Files below an address."""

    def __init__(self, url: Url) -> None:
        super().__init__()
        self._url, self._connection = url, Connection(url)
        self._states: dict[str, FileState | None] | None = None

    def names(self) -> Iterator[str]:
        """Yield the files, relative to the address.

        Raises:
            DataError: if they cannot be listed.
        """
        if not (listed := self._listed()):
            raise DataError(
                "nothing is there",
                path=self._url,
                expected="a folder (prefix) of a bucket, an archive or a table",
                fix="check the address, and that the credentials in the environment may list it",
            )
        yield from listed

    def _file(self, name: str) -> ContainerFile | None:
        return remote_file(self._connection, self._url / name)

    def _own_state(self, path: str) -> FileState | None:
        listed = self._listed()
        return (listed[path] or FileState(0, EPOCH, 0)) if path in listed else None

    def _own_content(self, path: str) -> tuple[bytes, FileState]:
        # A time of 0 is not relied on: the file is read again.
        state = self._listed().get(path) or FileState(0, 0, 0)
        check_size(state.size)
        data = self._start(path, None if state.mtime_ns else MAX_FILE_BYTES + 1)
        check_size(len(data))
        return data, state._replace(size=len(data))

    def _start(self, path: str, size: int | None) -> bytes:
        state = self._listed().get(path)
        if state is not None and size is not None:
            size = min(size, state.size)
        if size == 0:
            return b""
        try:
            return self._connection.content(self._url / path, None if size is None else 0, size)
        except FileNotFoundError as error:
            raise ImageError("cannot be read: no such object") from error

    def _listed(self) -> dict[str, FileState | None]:
        with self._lock:
            if self._states is None:
                self._states = {name: _state_of(info) for name, info in self._connection.listing().items()}
                if None in self._states.values():
                    self.doubts = [f"{self._url}: {_NO_STATE}"]
            return self._states
