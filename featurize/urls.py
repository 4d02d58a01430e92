"""Addresses of data, such as ``s3://bucket/folder``. What is secret in one is neither shown nor stored."""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path, PurePosixPath
from urllib.parse import unquote
from urllib.request import url2pathname

from xfeat.featurize.errors import SpecError

_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
# Their own programs take credentials from the environment; in an address they would be a part of the bucket's name.
_WITHOUT_CREDENTIALS = ("s3", "s3a", "gs", "gcs")


def is_url(name: str) -> bool:
    """Tell whether a name is an address such as ``https://…`` or ``s3://…``."""
    return bool(_URL.match(name))


class Url:
    """An address of data, with as much of ``Path`` as data roots need.

    ``str`` gives it without user, password, query and fragment: for messages, and for files that store it. Only
    :attr:`full`, which opens it, has them.

    Attributes:
        scheme: such as ``s3``.
        is_web: whether it is one of a web server, which lists no files.

    Args:
        text: the address.

    Raises:
        SpecError: if it is an address within another, or has the credentials of a bucket.
    """

    def __init__(self, text: str) -> None:
        scheme, _, rest = text.partition("://")
        self.scheme = scheme.lower()
        self.is_web = self.scheme in ("http", "https")
        authority, slash, path = rest.partition("/")
        self._user, at, host = authority.rpartition("@")
        self._query = ""
        if self.is_web:
            found = re.search(r"[?#]", path)
            path, self._query = (path[: found.start()], path[found.start() :]) if found else (path, "")
        elif ":" not in self._user:  # abfs://container@account
            self._user, at, host = "", "", authority
        self._secret = self._user + at
        self._path = f"{self.scheme}://{host}{slash}{path}".rstrip("/")
        if "::" in text:
            raise SpecError("an address within another cannot be read", expected="one address", found=str(self))
        if self._secret and self.scheme in _WITHOUT_CREDENTIALS:
            raise SpecError(
                "the address contains credentials",
                expected="credentials in the environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
                found=str(self),
                fix="leave them out of the address",
            )

    @property
    def full(self) -> str:
        """The address with everything that opens it."""
        scheme, rest = self._path.split("://", 1)
        return f"{scheme}://{self._secret}{rest}{self._query}"

    @property
    def has_secrets(self) -> bool:
        """Whether ``str`` leaves something out."""
        return bool(self._secret or self._query)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self._path.split("://", 1)[1].partition("/")[2]).name

    @property
    def suffix(self) -> str:
        """The suffix of the name, with its dot."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> Url:
        """The folder."""
        return self._with_path(posixpath.dirname(self._path))

    def redacted(self, text: str) -> str:
        """Return a text, such as an error of a library, without what is secret in this address."""
        for secret in (self.full, self._query, self._secret, self._user):
            if len(secret) > 1:
                text = text.replace(secret, str(self) if secret == self.full else "…")
        return text

    def resolve(self) -> Url:
        """Return this address: it is complete."""
        return self

    absolute = resolve

    def _with_path(self, path: str) -> Url:
        scheme, rest = path.split("://", 1)
        return Url(f"{scheme}://{self._secret}{rest}{self._query}")

    def __truediv__(self, name: str | os.PathLike[str]) -> Url:
        return self._with_path(f"{self._path}/{os.fspath(name)}")

    def __str__(self) -> str:
        return self._path

    def __fspath__(self) -> str:
        return self._path

    def __repr__(self) -> str:
        return f"Url({self._path!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Url) and self.full == other.full

    def __hash__(self) -> int:
        return hash(self.full)


Root = Path | Url
"""Where data is: a folder or file of this machine, or an address."""


def root_of(text: str | os.PathLike[str]) -> Root:
    """Return the place that a text names; ``file://`` is a path."""
    if isinstance(text, Url):
        return text
    name = os.fspath(text)
    if not is_url(name):
        return Path(text)
    if name.lower().startswith("file://"):
        return Path(url2pathname(unquote(name[len("file://") :].removeprefix("localhost"))))
    return Url(name)


def real_root(text: str) -> str:
    """Return a stored data root without links; an address stays as it is."""
    return text if is_url(text) else os.path.realpath(text)
