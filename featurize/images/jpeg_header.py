"""Reads the structure of a JPEG file without decoding it: number of scans, bits, compression."""

from __future__ import annotations

import re
from typing import NamedTuple

_SOI, _SOS, _EOI = b"\xff\xd8", 0xDA, 0xD9
# Source: ITU-T T.81, table B.1: frames other than DHT (C4), JPG (C8) and DAC (CC); T.87: JPEG-LS (F7).
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
_LOSSLESS = {0xC3, 0xC7, 0xCB, 0xCF, 0xF7}
# In the data of a scan FF is followed by 00 or is a restart marker; anything else ends the scan.
_NEXT_MARKER = re.compile(rb"\xff+[\x01-\xcf\xd8-\xfe]")


class JpegHeader(NamedTuple):
    """What a JPEG file says of itself.

    Attributes:
        scans: passes over the image; a progressive file of a camera or editor has about ten.
        bits: per channel; 0 if the file does not say.
        lossless: compressed without loss: JPEG Lossless, as DICOM has it, or JPEG-LS.
    """

    scans: int
    bits: int
    lossless: bool


def read_jpeg_header(data: bytes, *, most_scans: int) -> JpegHeader | None:
    """Walk through the markers of a JPEG file; ``None`` if it is another file.

    Args:
        data: content of the file.
        most_scans: counting ends with the next one.
    """
    if not data.startswith(_SOI):
        return None
    scans = bits = position = 0
    lossless = False
    while scans <= most_scans and (found := _NEXT_MARKER.search(data, position or len(_SOI))):
        marker, position = data[found.end() - 1], found.end()
        if marker == _EOI:
            break
        if marker in _FRAMES and position + 2 < len(data):
            bits, lossless = data[position + 2], marker in _LOSSLESS
        scans += marker == _SOS
        # A segment starts with its length; a damaged one of less than 2 must not stop the walk.
        position += max(2, int.from_bytes(data[position : position + 2], "big"))
    return JpegHeader(scans, bits, lossless)
