"""Reads the headers of JPEG, JPEG-LS and JPEG 2000 without decoding: of files, and of the pixels in DICOM files."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from xfeat.featurize.errors import ImageError
from xfeat.featurize.images.limits import MAX_DECODED_PIXELS

# Source: ITU-T T.81, table B.1: frames other than DHT (C4), JPG (C8) and DAC (CC); T.87: JPEG-LS (F7).
_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_LOSSLESS = {0xC3, 0xC7, 0xCB, 0xCF, 0xF7}
_SOS, _EOI, _APP0, _APP14 = 0xDA, 0xD9, 0xE0, 0xEE
# In the data of a scan FF is followed by 00 or is a restart marker; anything else ends the scan.
_NEXT_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
# A search holds the interpreter's lock: for a piece about 10 ms.
_PIECE_BYTES = 1 << 20
_MAX_SEGMENTS = 100_000
# A progressive JPEG of 150 kB can have 2,000 scans, which take half a minute; cameras and editors write about ten.
_MOST_SCANS = 100


class ImageHeader(NamedTuple):
    """What compressed data say of themselves.

    Attributes:
        width: in pixels.
        height: in pixels.
        samples: per pixel.
        bits: per sample.
        signed: samples are in two's complement; only JPEG 2000 knows signs.
        lossless: JPEG Lossless or JPEG-LS.
        ybr: colours are decoded to YCbCr, not RGB; ``None`` if the data do not say.
    """

    width: int
    height: int
    samples: int
    bits: int
    signed: bool = False
    lossless: bool = False
    ybr: bool | None = None


def read_jpeg_header(data: bytes) -> ImageHeader | None:
    """Read the frame header of JPEG or JPEG-LS data; ``None`` if they are something else, or have none."""
    jfif, adobe = False, -1
    for marker, start in _segments(data) if data.startswith(b"\xff\xd8") else ():
        content = data[start + 2 : start + int.from_bytes(data[start : start + 2], "big")]
        if marker == _APP0 and content.startswith(b"JFIF"):
            jfif = True
        if marker == _APP14 and content.startswith(b"Adobe") and len(content) >= 12:
            adobe = content[11]
        if marker in _FRAMES and len(content) >= 6:
            bits, height, width, samples = struct.unpack_from(">BHHB", content)
            lossless, ybr = marker in _LOSSLESS, None
            if not lossless:
                is_rgb = content[6 : 6 + 3 * samples : 3].upper() == b"RGB"
                ybr = False if is_rgb else adobe != 0 if adobe >= 0 else True if jfif else None
            return ImageHeader(width, height, samples, bits, lossless=lossless, ybr=ybr)
    return None


def read_jpeg_2000_header(data: bytes) -> ImageHeader | None:
    """Read the size marker of JPEG 2000 data, also if they are wrapped in a JP2 file; ``None`` if there is none.

    Source: ISO/IEC 15444-1, A.5.1 and A.6.1.
    """
    start = data.find(b"\xff\x4f\xff\x51")
    if start < 0 or start + 43 > len(data):
        return None
    right, bottom, left, top = struct.unpack_from(">IIII", data, start + 8)
    samples, bits = struct.unpack_from(">HB", data, start + 40)
    # Where the colours were transformed, the decoder returns RGB whatever a tag says.
    coding = data.find(b"\xff\x52", start)
    transformed = coding >= 0 and data[coding + 8 : coding + 9] == b"\1"
    return ImageHeader(
        right - left,
        bottom - top,
        samples,
        (bits & 0x7F) + 1,
        signed=bool(bits & 0x80),
        ybr=False if transformed else None,
    )


def check_scans(data: bytes, kind: str, *, pixels: int) -> None:
    """Refuse JPEG data that go over the image so often that decoding them takes minutes.

    Args:
        data: JPEG data.
        kind: how they are called in the message.
        pixels: of the image.

    Raises:
        ImageError: with the number of scans that are allowed.
    """
    most = min(_MOST_SCANS, MAX_DECODED_PIXELS // max(1, pixels))
    if data.count(b"\xff\xda") <= most:  # fast, and true of nearly all; a thumbnail inside has markers, too
        return
    scans = (marker for marker, _ in _segments(data) if marker == _SOS)
    if next(islice(scans, most, None), None) is not None:
        raise ImageError(f"{kind} of more than {most} scans, each over the whole image, would take too long")


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield each marker after the first, with the place of what follows it, up to the end of the image."""
    position = 2
    for _ in range(_MAX_SEGMENTS):
        pieces = range(position, len(data), _PIECE_BYTES)
        found = next(filter(None, (_NEXT_MARKER.search(data, at, at + _PIECE_BYTES + 1) for at in pieces)), None)
        if found is None or data[found.end() - 1] == _EOI:
            return
        position = found.end()
        yield data[position - 1], position
        # A segment starts with its length; a damaged one of less than 2 must not stop the walk.
        position += max(2, int.from_bytes(data[position : position + 2], "big"))
    raise ImageError(f"JPEG of more than {_MAX_SEGMENTS} segments")
