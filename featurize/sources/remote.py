"""Images at an address: an object store or a web server, through fsspec. Nothing waits for ever."""

from __future__ import annotations

import io
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any, BinaryIO, TypeVar

from xfeat.featurize.errors import DataError, ImageError, MissingExtraError
from xfeat.featurize.sources.container_file import ContainerFile
from xfeat.featurize.sources.containers import Containers, room_for, temporary_copy
from xfeat.featurize.sources.image_source import (
    EPOCH,
    MAX_FILE_BYTES,
    READ_LIMIT_S,
    FileState,
    ImageSource,
    Records,
    check_size,
    digest_mark,
)
from xfeat.featurize.system.time_limit import limited
from xfeat.featurize.text import quote
from xfeat.featurize.urls import Url

logger = logging.getLogger(__name__)

R = TypeVar("R")

# Seconds before each further attempt.
WAITS_S = (0.5, 2.0, 5.0)
_CONNECT_S, _ANSWER_S = 6.0, 20.0
_LIST_LIMIT_S = 900.0  # 1,000 objects per answer
_RANGE_BYTES, _CHUNK_BYTES = 1 << 20, 8 << 20
_GONE = (404, 410)
_RETRIED = (408, 429)  # statuses that mean "later"
_ETAGS = ("ETag", "etag", "md5Hash", "content_md5", "Content-MD5", "checksum", "sha256", "blob_id")
_TIMES = ("LastModified", "last_modified", "Last-Modified", "updated", "mtime", "modified", "created")


class NoRangesError(Exception):
    """A web server sends files only as a whole."""


@limited(READ_LIMIT_S, "read")
def _timed(call: Callable[[], R]) -> R:
    return call()


@limited(_LIST_LIMIT_S, "listed")
def _timed_listing(call: Callable[[], R]) -> R:
    return call()


@dataclass(frozen=True)
class Connection:
    """A connection to one place, opened when it is used first; a pickled copy opens its own.

    Attributes:
        url: the place.
    """

    url: Url

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    @cached_property
    def _files(self) -> Any:
        try:
            from fsspec.core import url_to_fs
        except ImportError as error:
            raise MissingExtraError("fsspec is not installed", fix="pip install 'xfeat-onnx[remote]'") from error
        try:
            files, _ = url_to_fs(self.url.full, skip_instance_cache=True, **_options(self.url.scheme))
        except ImportError as error:
            raise MissingExtraError(
                f"nothing installed here opens {self.url.scheme}://",
                found=quote(error),
                fix="pip install 'xfeat-onnx[remote]', or the package that it names",
            ) from error
        except ValueError as error:
            raise DataError(
                "an address of unknown kind",
                path=self.url,
                expected="s3://, gs://, https:// or another one of fsspec",
                found=self.url.redacted(quote(error)),
                fix="check the address",
            ) from error
        if hasattr(files, "retries"):
            files.retries = 2  # there are attempts of our own
        return files

    def info(self, url: Url) -> dict[str, Any] | None:
        """Return what is told of a file, ``None`` if there is none."""
        try:
            found: dict[str, Any] = self._attempt(url, lambda: self._files.info(self._path(url)))
        except FileNotFoundError:
            return None
        return found

    def content(self, url: Url, start: int | None = None, end: int | None = None) -> bytes:
        """Return the content of a file, or a part of it.

        Raises:
            FileNotFoundError: if there is none.
            DataError: if there is no answer.
        """
        return bytes(self._attempt(url, lambda: self._files.cat_file(self._path(url), start=start, end=end)))

    def part_of_large(self, url: Url, size: int, start: int, end: int) -> bytes:
        """Return a part of a file of a known size, which is never fetched whole.

        Raises:
            NoRangesError: if the server sends no parts.
            DataError: if there is no answer.
        """
        if not url.is_web:
            return self.content(url, start, end)

        def fetch() -> bytes:
            # Unlike cat_file, it does not take the whole file for the part.
            with self._files.open(self._path(url), "rb", size=size, cache_type="none") as file:
                file.seek(start)
                return bytes(file.read(end - start))

        return self._attempt(url, fetch)

    def listing(self) -> dict[str, dict[str, Any]]:
        """Return what is told of all files below the place, by their path relative to it."""
        root = self._path(self.url).rstrip("/")
        try:
            found = self._attempt(self.url, lambda: self._files.find(root, detail=True), _timed_listing)
        except FileNotFoundError:
            return {}
        start = f"{root}/"
        return {
            path.removeprefix(start): info
            for path, info in found.items()
            if path.startswith(start) and info.get("type") != "directory" and not path.endswith("/")
        }

    def _path(self, url: Url) -> str:
        return str(self._files._strip_protocol(url.full))

    def _attempt(self, url: Url, call: Callable[[], R], timed: Callable[[Callable[[], R]], R] = _timed) -> R:
        """Call, and call again after a while if the connection fails; give up after a few attempts."""
        for wait in (*WAITS_S, None):
            try:
                return timed(call)
            except (MissingExtraError, DataError):
                raise
            except Exception as problem:  # noqa: BLE001 - every library has errors of its own
                # fsspec says of every problem of a web server that the file is not found.
                error = problem.__cause__ if url.is_web and isinstance(problem.__cause__, Exception) else problem
                if isinstance(error, FileNotFoundError) or getattr(error, "status", 0) in _GONE:
                    raise FileNotFoundError(str(url)) from error
                if isinstance(error, ValueError) and "range requests" in str(error):
                    raise NoRangesError from error
                found = quote(url.redacted(str(error) or type(error).__name__))
                if _is_refused(error):
                    raise _no_access(url, found) from error
                if wait is None:
                    raise DataError(
                        f"no answer after {len(WAITS_S) + 1} attempts",
                        path=url,
                        found=found,
                        fix="check the address and the connection, and run the same command again: it resumes",
                    ) from error
                logger.info("%s: %s; trying again", url, found)
                time.sleep(wait)
        raise AssertionError


def _is_refused(error: Exception) -> bool:
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if isinstance(status, int) and 400 <= status < 500:
        return status not in _RETRIED
    return isinstance(error, PermissionError) or "Credentials" in type(error).__name__


def _no_access(url: Url, found: str) -> DataError:
    fix = "check the address"
    if url.scheme in ("s3", "s3a"):
        fix = "set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or AWS_PROFILE; for a public bucket FSSPEC_S3_ANON=true"
    elif url.scheme in ("gs", "gcs"):
        fix = "set GOOGLE_APPLICATION_CREDENTIALS; for a public bucket FSSPEC_GCS_TOKEN=anon"
    elif url.is_web:
        fix = "give the whole address, with its signature; it is not stored"
    return DataError("access is refused", path=url, found=found, fix=fix)


def _options(scheme: str) -> dict[str, Any]:
    """Return the time limits of a connection. Listings are not kept: they would be old in a long-running program."""
    if scheme in ("s3", "s3a"):
        config = {"connect_timeout": _CONNECT_S, "read_timeout": _ANSWER_S, "retries": {"max_attempts": 1}}
        return {"config_kwargs": config, "use_listings_cache": False}
    if scheme in ("http", "https"):
        import aiohttp

        limits = aiohttp.ClientTimeout(total=None, connect=_CONNECT_S, sock_connect=_CONNECT_S, sock_read=_ANSWER_S)
        return {"client_kwargs": {"timeout": limits}, "use_listings_cache": False}
    if scheme in ("gs", "gcs"):
        return {"requests_timeout": _ANSWER_S, "use_listings_cache": False}
    return {}


# Files


@dataclass(frozen=True)
class RemoteFile(ContainerFile):
    """A file at an address, read by ranges."""

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
        assert isinstance(self.path, Url)
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

    def tell(self) -> int:
        return self._position

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
    size, state = info.get("size"), _state_of(info)
    identity: tuple[object, ...] = (state.size, state.change_mark) if state else (secrets.token_hex(8),)
    file = RemoteFile(url, identity, size or 0, state.mtime_ns if state else EPOCH, connection)
    if state is None:
        logger.warning("%s: the server tells neither ETag nor time: every run reads all images again", url)
    try:
        file.read_at(1, 1)
    except NoRangesError:
        size = None
    return file if size else temporary_copy(file, _fetch)


def _fetch(original: ContainerFile, target: BinaryIO) -> None:
    assert isinstance(original, RemoteFile)
    assert isinstance(original.path, Url)
    connection, url = original.connection, original.path
    logger.info("%s: the server does not send parts of a file; all of it is fetched to a temporary file", url)

    def copy() -> None:
        target.seek(0)
        target.truncate()
        with connection._files.open(connection._path(url), "rb", block_size=0) as stream:
            room_for(target, original.size, url)
            while chunk := stream.read(_CHUNK_BYTES):
                room_for(target, len(chunk), url)
                target.write(chunk)
        if original.size and target.tell() < original.size:
            raise OSError(f"the connection was cut after {target.tell()} of {original.size} bytes")

    connection._attempt(url, copy, _timed_listing)


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


class RemoteFolder:
    """Files below an address."""

    def __init__(self, url: Url) -> None:
        self._url, self._connection = url, Connection(url)
        self._states: dict[str, FileState | None] | None = None
        self._lock = threading.Lock()
        self._containers = Containers(self._file, self)
        self.doubts: Sequence[str] = ()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

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

    def records(self) -> Records | None:
        """Return ``None``: a folder has nothing but names."""
        return None

    def container(self, name: str) -> ImageSource | None:
        """Return the archive or table of a name, ``None`` if it is not there.

        Raises:
            DataError: if it cannot be read.
        """
        return self._containers.open(name)

    def state(self, path: str) -> FileState | None:
        """Return the state of a file as it was listed, ``None`` if it does not exist."""
        if (inner := self._containers.of(path)) is not None:
            return inner[0].state(inner[1])
        listed = self._listed()
        return (listed[path] or FileState(0, EPOCH, 0)) if path in listed else None

    def read(self, path: str) -> tuple[bytes, FileState]:
        """Return a file's content and the state in which it was listed.

        Raises:
            ImageError: if it is not there, or too large.
            DataError: if there is no answer.
        """
        if (inner := self._containers.of(path)) is not None:
            return inner[0].read(inner[1])
        state = self._listed().get(path)
        if state is not None:
            check_size(state.size)
        data = self._content(path, MAX_FILE_BYTES + 1 if state is None else None)
        check_size(len(data))
        # A time of 0 is not relied on: the file is read again.
        return data, state._replace(size=len(data)) if state else FileState(len(data), 0, 0)

    def head(self, path: str, size: int) -> bytes:
        """Return the first bytes of a file, at most ``size``; none if it cannot be read."""
        if (inner := self._containers.of(path)) is not None:
            return inner[0].head(inner[1], size)
        try:
            return self._content(path, size)
        except ImageError:
            return b""

    def order(self, path: str) -> tuple[str, int]:
        """Return the container of a file and where in it the file is; files of its own are as good in any order."""
        inner = self._containers.of(path)
        return ("", 0) if inner is None else (path.removesuffix(inner[1]), inner[0].order(inner[1])[1])

    def _content(self, path: str, size: int | None) -> bytes:
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
                    self.doubts = [f"{self._url}: tells neither ETag nor time: every run reads all images again"]
            return self._states

    def _file(self, name: str) -> ContainerFile | None:
        return remote_file(self._connection, self._url / name)
