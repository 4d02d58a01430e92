"""Reads regular files only: a read from a pipe or a device may never end."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        OSError: if it cannot be opened, or is a pipe, a socket, a device or a folder.
    """
    # A pipe that nobody writes into would block for ever.
    flags = getattr(os, "O_NONBLOCK", 0)
    file = open(path, "rb", opener=lambda path, mode: os.open(path, mode | flags))  # noqa: SIM115 - the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file: a pipe, socket or device", os.fspath(path))
    return file


def read_regular(path: Path) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: as :func:`open_regular`.
    """
    with open_regular(path) as file:
        return file.read()
