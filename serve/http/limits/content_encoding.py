"""Compressed request bodies: gzip and deflate, inflated in small pieces, each of which is counted."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from starlette.exceptions import HTTPException

_ACCEPTED = {"Accept-Encoding": "gzip, deflate"}
_GZIP = 16 + zlib.MAX_WBITS
# A slice of input inflates to at most 1032 times its size; it is taken out in pieces.
_SLICE_BYTES = 1 << 14
_PIECE_BYTES = 1 << 18
_MAX_MEMBERS = 1000  # each costs 25 microseconds, however little it holds; bgzip writes one per 64 KiB


def inflater_for(content_encoding: str) -> Inflater | None:
    """Return what undoes a Content-Encoding; ``None`` if there is nothing to undo.

    Raises:
        HTTPException: 415 if it is not supported; the response says what is.
    """
    codings = [part.strip().lower() for part in content_encoding.split(",")]
    codings = [coding for coding in codings if coding not in ("", "identity")]
    if not codings:
        return None
    if codings in (["gzip"], ["x-gzip"], ["deflate"]):
        return Inflater(codings[0])
    what = f"Content-Encoding {', '.join(codings)[:100]} is not supported: send gzip, deflate, or the body as it is"
    raise HTTPException(415, what, _ACCEPTED)


class Inflater:
    """Inflates one body, slice by slice.

    Args:
        coding: ``gzip``, ``x-gzip`` or ``deflate``.
    """

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._inflate = zlib.decompressobj(zlib.MAX_WBITS if coding == "deflate" else _GZIP)
        self._started = False
        self._members = 1

    def pieces(self, data: bytes, *, last: bool) -> Iterator[bytes]:
        """Yield what some bytes of the body inflate to, at most 256 KiB at a time; a piece may be empty.

        Args:
            data: the next bytes of the body.
            last: whether the body ends with them.

        Raises:
            HTTPException: 400 if the body is damaged, or incomplete.
        """
        try:
            for start in range(0, len(data), _SLICE_BYTES):
                yield from self._slice(data[start : start + _SLICE_BYTES])
        except zlib.error as error:
            raise HTTPException(400, f"the body is not {self._coding} data, as Content-Encoding says") from error
        if last and self._started and not self._inflate.eof:
            raise HTTPException(400, f"the {self._coding} data of the body is incomplete")

    def _slice(self, data: bytes) -> Iterator[bytes]:
        piece = b""
        while data or (len(piece) == _PIECE_BYTES and not self._inflate.eof):
            if data and self._inflate.eof:
                if self._coding == "deflate":
                    raise zlib.error("data after the end")
                self._members += 1
                if self._members > _MAX_MEMBERS:
                    raise HTTPException(400, f"the body has more than {_MAX_MEMBERS} gzip members")
                self._inflate = zlib.decompressobj(_GZIP)  # gzip data may be several members in a row
            elif not self._started and self._coding == "deflate" and data[0] & 15 != zlib.DEFLATED:
                self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)  # some clients leave out the header of zlib
            self._started = True
            piece = self._inflate.decompress(data, _PIECE_BYTES)
            data = self._inflate.unconsumed_tail or self._inflate.unused_data
            yield piece
