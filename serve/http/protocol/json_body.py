"""JSON in bounded steps: ``json.loads`` holds the interpreter's lock until it is done, so nobody else is answered.

Long strings and long arrays of numbers, which are image data, are cut out first and read in pieces. What is left is
small: its nesting, its objects and the digits of its numbers are bounded by its size.
"""

from __future__ import annotations

import binascii
import json
import math
import secrets
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.exceptions import HTTPException

_LONG_BYTES = 1 << 16
_MAX_REST_BYTES = 1 << 20
_PIECE_BYTES = 1 << 18  # takes about 10 ms
_SPACE = b" \t\r\n\v\f"
_FROM_URL_ALPHABET = bytes.maketrans(b"-_", b"+/")

LongValues = dict[str, bytes]


def parse_json(text: bytes) -> tuple[Any, LongValues]:
    """Parse JSON without its long values.

    Args:
        text: JSON in UTF-8.

    Returns:
        The parsed JSON, with a mark in place of each value of more than 64 KiB; and these values, by their marks: the
        inside of a string, with its escapes, or an array from ``[`` to ``]``.

    Raises:
        HTTPException: 400 if it is not JSON, 413 if more than 1 MiB is left.
    """
    try:
        rest, long = (text, {}) if len(text) <= _LONG_BYTES else _cut(text)
        return json.loads(rest), long
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"not JSON: {error}") from error


def _cut(text: bytes) -> tuple[bytes, LongValues]:
    kept: list[bytes] = []
    long: LongValues = {}
    # Stands for a value that was cut out; also in error messages. No client can know it, and use one value many times.
    mark = f"a value of over 64 KiB, {secrets.token_hex(8)}"
    left = _MAX_REST_BYTES

    def keep(start: int, end: int) -> None:
        nonlocal left
        left -= end - start
        if left < 0:
            raise HTTPException(413, "the JSON is larger than 1 MiB without its image data")
        kept.append(text[start:end])

    def cut(start: int, end: int) -> None:
        name = f"{mark}-{len(long)}"
        long[name] = text[start:end]
        kept.append(f'"{name}"'.encode())

    at = 0
    while at < len(text):
        quote = text.find(b'"', at)
        stop = quote if quote >= 0 else len(text)
        first, last = _array_between(text, at, stop)
        keep(at, first)
        if last > first:
            cut(first, last)
        keep(last, stop)
        if quote < 0:
            break
        end = _end_of_string(text, quote + 1)
        if end - quote > _LONG_BYTES:
            cut(quote + 1, end)
        else:
            keep(quote, end + 1)
        at = end + 1
    return b"".join(kept), long


def _array_between(text: bytes, at: int, stop: int) -> tuple[int, int]:
    """Return the limits of the long array between two strings; if there is none, both are ``stop``."""
    if stop - at > _LONG_BYTES and (first := text.find(b"[", at, stop)) >= 0:
        brace = text.find(b"}", first, stop)
        last = text.rfind(b"]", first, brace if brace >= 0 else stop) + 1
        if last - first > _LONG_BYTES:
            return first, last
    return stop, stop


def _end_of_string(text: bytes, start: int) -> int:
    end = start - 1
    while (end := text.find(b'"', end + 1)) >= 0:
        before = text[max(start, end - _LONG_BYTES) : end]
        if (len(before) - len(before.rstrip(b"\\"))) % 2 == 0:
            return end
        if end - start > _LONG_BYTES:
            raise ValueError("a string of more than 64 KiB holds a quotation mark")
    raise ValueError("a string has no end")


def read_levels(data: Any, long: LongValues, shape: list[int]) -> NDArray[np.uint8]:
    """Return uint8 values, flat, from an array of integers that is flat, or nested like the shape.

    Args:
        data: parsed JSON; a list, or the mark of a long one.
        long: values by their marks.
        shape: (N, H, W, 3).

    Raises:
        HTTPException: 400 if it is anything else.
    """
    text = long[data] if isinstance(data, str) and data in long else json.dumps(data).encode()
    number = math.prod(shape)
    expected = f"data must be {number} integers from 0 to 255, flat or nested like the shape {shape}"
    pieces = (text[at : at + _PIECE_BYTES] for at in range(0, len(text), _PIECE_BYTES))
    skeleton = b"".join(piece.translate(None, b"0123456789" + _SPACE) for piece in pieces)
    # The number of commas is checked first: an array like the shape may not fit into memory.
    if skeleton.count(b",") != number - 1 or skeleton not in (b"[" + b"," * (number - 1) + b"]", _nested(shape)):
        raise HTTPException(400, expected)
    values = bytearray()
    at = 0
    try:
        while at < len(text):
            comma = text.find(b",", at + _PIECE_BYTES)
            stop = comma if comma >= 0 else len(text)
            values += bytes(json.loads(b"[" + text[at:stop].translate(None, b"[]") + b"]"))
            at = stop + 1
    except ValueError as error:
        raise HTTPException(400, expected) from error
    return np.frombuffer(values, np.uint8)


def _nested(shape: list[int]) -> bytes:
    """Return brackets and commas of a nested array."""
    text = b""
    for axis in reversed(shape):
        text = b"[" + b",".join([text] * axis) + b"]"
    return text


def read_base64(text: str, long: LongValues) -> bytes:
    """Return what a string is the base64 of. Line ends, a data URL, the alphabet of URLs, and no padding are accepted.

    Args:
        text: parsed JSON, or the mark of a long string.
        long: values by their marks.

    Raises:
        HTTPException: 400 if it is not base64.
    """
    raw = long.get(text) or json.dumps(text)[1:-1].encode()
    decoded, rest, padded = [], b"", False
    try:
        for number, piece in enumerate(_unescaped(raw)):
            if number == 0 and piece[:5].lower() == b"data:":
                head, _, piece = piece.partition(b",")
                if not head.lower().endswith(b";base64"):
                    raise ValueError("the data URL is not base64")
            rest += piece.translate(_FROM_URL_ALPHABET, _SPACE)
            usable = len(rest) - len(rest) % 4
            if padded and rest:
                raise ValueError("data after the padding")
            decoded.append(binascii.a2b_base64(rest[:usable], strict_mode=True))
            padded = b"=" in rest[:usable]
            rest = rest[usable:]
        decoded.append(binascii.a2b_base64(rest + b"=" * (-len(rest) % 4), strict_mode=True))
    except ValueError as error:  # also binascii.Error
        raise HTTPException(400, f"BYTES data in JSON must be base64: {error}") from error
    return b"".join(decoded)


def _unescaped(raw: bytes) -> Iterator[bytes]:
    """Yield the inside of a JSON string in pieces, without its escapes. .NET writes ``+`` as ``\\u002B``."""
    at = 0
    while at < len(raw):
        stop = min(at + _PIECE_BYTES, len(raw))
        if stop < len(raw) and (escape := raw.rfind(b"\\", stop - len(r"\u002B"), stop)) > at:
            stop = escape
        yield json.loads(b'"' + raw[at:stop] + b'"', strict=False).encode("ascii", "replace")
        at = stop
