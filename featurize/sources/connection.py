"""A connection to an object store or a web server, through fsspec. Nothing waits for ever."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from xfeat.featurize.errors import DataError, MissingExtraError
from xfeat.featurize.sources.image_source import READ_LIMIT_S
from xfeat.featurize.system.time_limit import limited
from xfeat.featurize.text import quote
from xfeat.featurize.urls import Url

logger = logging.getLogger(__name__)

R = TypeVar("R")

# Seconds before each further attempt.
WAITS_S = (0.5, 2.0, 5.0)
_CONNECT_S, _ANSWER_S = 6.0, 20.0
_LONG = (900.0, "listed or fetched")  # of a listing, 1,000 objects per answer, or a whole file
_CHUNK_BYTES = 8 << 20
_LOGGING = ("gcsfs", "s3fs", "fsspec", "aiobotocore", "asyncio")
_GONE = (404, 410)
_RETRIED = (408, 429)  # statuses that mean "later"
_SERVICES = {"s3a": "s3", "gcs": "gs", "https": "http"}  # schemes of the same services
_ACCESS = {
    "s3": "set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or AWS_PROFILE; for a public bucket FSSPEC_S3_ANON=true",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS; for a public bucket FSSPEC_GCS_TOKEN=anon",
    "http": "give the whole address, with its signature; it is not stored",
}


class NoRangesError(Exception):
    """A web server sends files only as a whole."""


@dataclass(frozen=True)
class Connection:
    """A connection to one place, opened when it is used first; a pickled copy opens its own.

    Attributes:
        url: the place.
    """

    url: Url

    def __reduce__(self) -> tuple[type[Connection], tuple[Url]]:
        return Connection, (self.url,)

    @property
    def _service(self) -> str:
        return _SERVICES.get(self.url.scheme, self.url.scheme)

    @cached_property
    def _files(self) -> Any:
        for name in _LOGGING:  # their warnings and tracebacks would be printed; errors are reported here
            logging.getLogger(name).addHandler(logging.NullHandler())
        try:
            from fsspec.core import url_to_fs

            files, _ = url_to_fs(self.url.full, skip_instance_cache=True, **_options(self._service))
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
        with suppress(FileNotFoundError):
            return dict(self._attempt(url, lambda: self._files.info(self._path(url))))
        return None

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

    def whole(self, url: Url, write: Callable[[Iterator[bytes]], None]) -> None:
        """Hand a file over in chunks, again from its start if the connection is cut.

        Raises:
            FileNotFoundError: if there is none.
            DataError: if there is no answer.
        """

        def fetch() -> None:
            with self._files.open(self._path(url), "rb", block_size=0) as stream:
                write(iter(lambda: stream.read(_CHUNK_BYTES), b""))

        self._attempt(url, fetch, _LONG)

    def listing(self) -> dict[str, dict[str, Any]]:
        """Return what is told of all files below the place, by their path relative to it."""
        root = self._path(self.url).rstrip("/")
        try:
            found = self._attempt(self.url, lambda: self._files.find(root, detail=True), _LONG)
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

    def _attempt(self, url: Url, call: Callable[[], R], limit: tuple[float, str] = (READ_LIMIT_S, "read")) -> R:
        """Call, and call again after a while if the connection fails; give up after a few attempts."""
        # gcsfs makes six attempts of its own.
        waits = WAITS_S[:1] if self._service == "gs" else WAITS_S
        for wait in (*waits, None):
            try:
                return limited(*limit)(call)()
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
                    fix = _ACCESS.get(self._service, "check the address")
                    raise DataError("access is refused", path=url, found=found, fix=fix) from error
                if wait is None:
                    raise DataError(
                        f"no answer after {len(waits) + 1} attempts",
                        path=url,
                        found=found,
                        fix="check the address and the connection, and run it again (xfeat featurize resumes)",
                    ) from error
                logger.info("%s: %s; trying again", url, found)
                time.sleep(wait)
        raise AssertionError


def _is_refused(error: Exception) -> bool:
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if isinstance(status, int) and 400 <= status < 500:
        return status not in _RETRIED
    return isinstance(error, PermissionError) or "Credentials" in type(error).__name__


def _options(service: str) -> dict[str, Any]:
    """Return the time limits of a connection. Listings are not kept: they would be old in a long-running program."""
    if service == "s3":
        config = {"connect_timeout": _CONNECT_S, "read_timeout": _ANSWER_S, "retries": {"max_attempts": 1}}
        return {"config_kwargs": config, "use_listings_cache": False}
    if service == "http":
        import aiohttp

        limits = aiohttp.ClientTimeout(total=None, connect=_CONNECT_S, sock_connect=_CONNECT_S, sock_read=_ANSWER_S)
        return {"client_kwargs": {"timeout": limits}, "use_listings_cache": False}
    if service == "gs":
        return {"requests_timeout": _ANSWER_S, "use_listings_cache": False}
    return {}
