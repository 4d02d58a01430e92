"""Paths on stdin, one per line, as they come."""

from __future__ import annotations

import codecs
import os
import select
from collections.abc import Iterator
from contextlib import suppress
from typing import BinaryIO

from xfeat.featurize.errors import DataError

_CHUNK_BYTES = 1 << 16
_MAX_BYTES = 1 << 20  # of a line; what has longer ones is no list
# So long nothing comes before the images so far are classified: a disk takes less to find the next names.
_PAUSE_S = 0.5


def paths_of(stream: BinaryIO, end: bytes) -> Iterator[str | None]:
    """Yield the paths of a list, and ``None`` whenever no more comes for a while. Empty lines do not count.

    Args:
        stream: of bytes.
        end: of a path: a line feed, before which a carriage return does not count, or NUL.

    Raises:
        DataError: if there is no path, or what comes is no list of paths.
    """
    # A buffer would wait until it is full.
    rest, any_path, raw = b"", False, getattr(stream, "raw", stream)
    while True:
        if _nothing_comes(raw):
            yield None
            continue
        chunk = raw.read(_CHUNK_BYTES)
        if end != b"\0" and b"\0" in chunk:
            fix = "add --null for a list of find -print0; save one of Windows as UTF-8"
            raise DataError("the list on stdin contains NUL", expected="one path per line", fix=fix)
        *whole, rest = (rest + chunk).split(end) if chunk else (rest, b"")
        for line in whole:
            path = line if end == b"\0" else line.removesuffix(b"\r")
            path = path if any_path else path.removeprefix(codecs.BOM_UTF8)
            if path:
                any_path = True
                yield os.fsdecode(path)
        if len(rest) > _MAX_BYTES:
            fix = "write a list of paths, such as: find data -name '*.png' | xserve predict -"
            raise DataError("the list on stdin has a line of over 1 MiB", expected="one path per line", fix=fix)
        if not chunk:
            break
    if not any_path:
        raise DataError("the list on stdin is empty", expected="one path per line", fix="check what writes it")


def _nothing_comes(stream: BinaryIO) -> bool:
    with suppress(OSError, ValueError):  # no file of the system, or one of Windows, which cannot be asked
        return not select.select([stream], [], [], _PAUSE_S)[0]
    return False
