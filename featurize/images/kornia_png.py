"""Decodes simple PNG files in half of Pillow's time, with the same pixels: docs/decisions/0016-plain-png.md."""

from __future__ import annotations

import importlib
import importlib.util
import struct
import threading
from functools import cache
from types import ModuleType

import numpy as np
from PIL import Image

from xfeat.featurize.images.limits import MAX_PIXELS

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Chunks that change no pixel here or in Pillow. Other files are left to Pillow: EXIF data can rotate an image, tRNS
# makes it transparent, acTL animates it, and Pillow refuses a file with a damaged colour profile.
_PLAIN = {b"IHDR", b"IDAT", b"IEND", b"pHYs", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"tIME", b"tEXt"}
_HIDDEN_EXIF = b"Raw profile"  # how ImageMagick stores EXIF data in a text chunk
_MODES = {0: ("L", "mono"), 2: ("RGB", "rgb")}  # PNG's colour type: Pillow's name, kornia-rs's
_TURN = threading.Lock()


def decode_plain_png(data: bytes) -> Image.Image | None:
    """Decode a PNG file with kornia-rs, if it is installed, no other thread is doing so, and the file is simple.

    kornia-rs holds the GIL while it decodes, so a second thread would have to wait: it uses Pillow instead.

    Args:
        data: content of a file.

    Returns:
        An image of mode ``L`` or ``RGB``; ``None`` if Pillow is to decode it, or to refuse it: files that are damaged
        or too large, too.
    """
    layout = _plain_layout(data)
    decoder = _kornia() if layout is not None else None
    if layout is None or decoder is None or layout[0] * layout[1] > MAX_PIXELS or not _TURN.acquire(blocking=False):
        return None
    width, height, (mode, name) = layout
    try:
        pixels = np.asarray(decoder.decode_image_png_u8(data, (height, width), name))
    except Exception:  # noqa: BLE001 - it has no specific exception; Pillow then reports what is wrong
        return None
    finally:
        _TURN.release()
    return Image.fromarray(pixels[..., 0] if mode == "L" else pixels)


@cache
def _kornia() -> ModuleType | None:
    return importlib.import_module("kornia_rs.io") if importlib.util.find_spec("kornia_rs") is not None else None


def _plain_layout(data: bytes) -> tuple[int, int, tuple[str, str]] | None:
    """Return width, height and mode of a complete, simple PNG file with 8 bits per channel, else ``None``."""
    if not data.startswith(_SIGNATURE):
        return None
    layout = None
    position = len(_SIGNATURE)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        content = position + 8
        if kind not in _PLAIN or (kind == b"tEXt" and data.startswith(_HIDDEN_EXIF, content)):
            return None
        if kind == b"IHDR":
            if length != 13 or content + length > len(data):
                return None
            width, height, bits, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, content)
            if layout is not None or bits != 8 or colour not in _MODES or interlaced:
                return None
            layout = width, height, _MODES[colour]
        if kind == b"IEND":
            return layout
        position = content + length + 4
    return None
