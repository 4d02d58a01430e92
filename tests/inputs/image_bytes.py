"""Image files that Pillow does not write: PNG with 16 bits per channel, and TIFF in any layout."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np

_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}


def png_16(levels: np.ndarray, *, significant: int = 0) -> bytes:
    """Return a PNG of (H, W) or (H, W, 2 to 4) levels with 16 bits; ``significant`` makes a chunk sBIT."""
    height, width = levels.shape[:2]
    channels = 1 if levels.ndim == 2 else levels.shape[2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, _COLOUR_TYPES[channels], 0, 0, 0))
    bits = chunk(b"sBIT", bytes([significant] * channels)) if significant else b""
    return b"\x89PNG\r\n\x1a\n" + header + bits + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")


def tiff(
    *pages: np.ndarray,
    photometric: int = 1,
    planar: int = 1,
    order: str = "<",
    extra: Sequence[int] = (),
    bits: int = 0,
    deflate: bool = False,
    tags: Sequence[Sequence[tuple[int, int]]] = (),
    left_out: Sequence[int] = (),
) -> bytes:
    """Return a TIFF, one strip per page or plane.

    Args:
        pages: (H, W) or (H, W, C); with ``bits`` the bytes (H, B) of packed rows.
        photometric: tag PhotometricInterpretation.
        planar: 2 stores each channel on its own.
        order: of bytes, ``<`` or ``>``.
        extra: tag ExtraSamples.
        bits: per sample, for packed rows.
        deflate: compress the pixels.
        tags: more tags of each page, with their values (LONG).
        left_out: tags that are not written.
    """
    out, link = bytearray((b"II*\0" if order == "<" else b"MM\0*") + bytes(4)), 4
    for number, page in enumerate(pages):
        height, width = page.shape[0], page.shape[1] * 8 // bits if bits else page.shape[1]
        channels = 1 if page.ndim == 2 else page.shape[2]
        stored = page if planar == 1 else np.moveaxis(page, 2, 0)
        data = stored.astype(page.dtype.newbyteorder(order)).tobytes()
        data = zlib.compress(data) if deflate else data
        start, parts = len(out), channels if planar == 2 else 1
        out += data + bytes(len(data) % 2)
        kind = {"u": 1, "i": 2, "f": 3}[page.dtype.kind]
        entries: dict[int, tuple[str, Sequence[int]]] = {
            256: ("I", [width]),
            257: ("I", [height]),
            258: ("H", [bits or page.dtype.itemsize * 8] * channels),
            259: ("H", [8 if deflate else 1]),
            262: ("H", [photometric]),
            273: ("I", [start + part * (len(data) // parts) for part in range(parts)]),
            277: ("H", [channels]),
            278: ("I", [height]),
            279: ("I", [len(data) // parts] * parts),
            284: ("H", [planar]),
            339: ("H", [kind] * channels),
            **({338: ("H", extra)} if extra else {}),
            **{tag: ("I", [value]) for tag, value in (tags[number] if tags else ())},
        }
        written = sorted((tag, entry) for tag, entry in entries.items() if tag not in left_out)
        fields = b""
        for tag, (form, values) in written:
            content = struct.pack(f"{order}{len(values)}{form}", *values)
            if len(content) > 4:
                fields_at, content = len(out), content + bytes(len(content) % 2)
                out += content
                content = struct.pack(order + "I", fields_at)
            fields += struct.pack(order + "HHI", tag, {"H": 3, "I": 4}[form], len(values)) + content.ljust(4, b"\0")
        struct.pack_into(order + "I", out, link, len(out))
        out += struct.pack(order + "H", len(written)) + fields
        link = len(out)
        out += bytes(4)
    return bytes(out)
