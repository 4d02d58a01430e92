"""What the tags of a TIFF file say about its pixels, where Pillow does not look: it would read some files wrongly."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from PIL import TiffImagePlugin

from xfeat.featurize.errors import ImageError

# Pillow knows their little-endian twins.
TiffImagePlugin.OPEN_INFO.setdefault((b"MM", 0, (1,), 1, (16,), ()), ("I;16B", "I;16B"))
TiffImagePlugin.OPEN_INFO.setdefault((b"MM", 1, (1,), 1, (32,), ()), ("I", "I;32B"))
# What libtiff has unpacked is in the order of this machine; Pillow knows that of unsigned 16 bits only.
_NATIVE = {"I;16S": "I;16NS", "I;16BS": "I;16NS", "I;32S": "I;32NS", "I;32BS": "I;32NS", "I;32B": "I;32N"}
_NATIVE |= {"F;32F": "F;32NF", "F;32BF": "F;32NF"}

# Source: TIFF 6.0, part 1 and 2, and the supplements of Adobe and libtiff.
WIDTH, STRIPS, TILES = 256, 273, 324
SUBFILE, OLD_SUBFILE, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES = 254, 255, 258, 259, 262, 277
FILL_ORDER, MAX_SAMPLE, PLANAR, SAMPLE_FORMAT, SMAX_SAMPLE = 266, 281, 284, 339, 341
YCBCR_SUBSAMPLING, IMAGE_DEPTH = 530, 32997
_REDUCED, _MASK, _OLD_REDUCED = 1, 4, 2
MIN_IS_WHITE, CMYK, YCBCR = 0, 5, 6
SIGNED, SEPARATE = 2, 2
_CCITT = {2, 3, 4, 32771}
_FORMATS = {2: "signed", 3: "floating-point", 4: "undefined format", 5: "complex", 6: "complex"}
_COLOURS = {0: "MinIsWhite", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr", 8: "Lab", 9: "Lab"}
_COLOURS |= {10: "Lab", 32803: "raw sensor data", 32844: "LogLuv", 32845: "LogLuv", 34892: "raw sensor data"}
_COMPRESSIONS = {5: "LZW", 6: "JPEG", 7: "JPEG", 8: "Deflate", 32773: "PackBits", 32946: "Deflate", 34712: "JPEG 2000"}
_COMPRESSIONS |= {33003: "JPEG 2000", 33005: "JPEG 2000", 34925: "LZMA", 50000: "Zstandard", 50001: "WebP"}
_COMPRESSIONS |= {50002: "JPEG XL", 52546: "JPEG XL", 34887: "LERC", 2: "CCITT", 3: "CCITT", 4: "CCITT"}

Tags = Mapping[int, Any]


def layout_of(data: bytes) -> str:
    """Return the layout of the first page of a file that Pillow does not read, in words; empty if it is damaged."""
    header, big = data[:16], data[2:4] == b"+\0"
    with suppress(Exception):  # Pillow raises many exceptions on damaged tags, without a common base
        tags = TiffImagePlugin.ImageFileDirectory_v2(header if big else header[:8])
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        if WIDTH in tags and (STRIPS in tags or TILES in tags):
            return describe_tiff(tags)
    return ""


def describe_tiff(tags: Tags) -> str:
    """Return the layout in words, such as ``TIFF, 5 channels of 16 bits, signed, planar, LZW``."""
    bits = _numbers(tags, BITS, 1)
    count = tags.get(SAMPLES, len(bits))
    size = "/".join(map(str, dict.fromkeys(bits)))
    parts = [f"{count} channel{'s' if count != 1 else ''} of {size} bit{'s' if size != '1' else ''}"]
    parts.append(_COLOURS.get(tags.get(PHOTOMETRIC, 1), "" if tags.get(PHOTOMETRIC, 1) == 1 else "unknown colours"))
    parts += [_FORMATS[kind] for kind in dict.fromkeys(_numbers(tags, SAMPLE_FORMAT, 1)) if kind in _FORMATS]
    parts.append("planar" if tags.get(PLANAR, 1) == SEPARATE else "")
    compression = tags.get(COMPRESSION, 1)
    parts.append("" if compression == 1 else _COMPRESSIONS.get(compression, f"compression {compression}"))
    parts.append(f"{tags[IMAGE_DEPTH]} slices" if tags.get(IMAGE_DEPTH, 1) != 1 else "")
    return ", ".join(["TIFF", *filter(None, parts)])


def check_tiff(tags: Tags) -> None:
    """Refuse layouts that Pillow opens, but reads wrongly.

    Raises:
        ImageError: with the layout as the reason.
    """
    bits, samples, planar = bits_of(tags), tags.get(SAMPLES, 1), tags.get(PLANAR, 1) == SEPARATE
    photometric, compression = tags.get(PHOTOMETRIC), tags.get(COMPRESSION, 1)
    if photometric is None and compression not in _CCITT:
        raise ImageError(f"{describe_tiff(tags)}: it does not say whether 0 is black or white")
    read_wrongly = (
        # Planes are unpacked as 8 bits; a single one that is not compressed, without regard to its layout.
        planar and samples > 1 and bits != 8,
        planar and samples == 1 and compression == 1 and (bits, photometric, tags.get(FILL_ORDER, 1)) != (8, 1, 1),
        # A colour is read for each pixel, where the default is one for four.
        photometric == YCBCR and compression == 1 and set(_numbers(tags, YCBCR_SUBSAMPLING, 2)) != {1},
        # 8 bits are kept of 16-bit ink, whose range may be smaller.
        photometric == CMYK and bits > 8,
        bits <= 8 and is_signed(tags),
        # The first slice of a volume is read.
        tags.get(IMAGE_DEPTH, 1) > 1,
    )
    if any(read_wrongly):
        raise unsupported(describe_tiff(tags))


def correct_byte_order(image: TiffImagePlugin.TiffImageFile) -> None:
    """Have compressed levels read in the order in which libtiff gives them."""
    if image.tile and image.tile[0].codec_name == "libtiff":
        (tile,) = image.tile
        raw, *others = tuple(tile.args or ())
        image.tile = [tile._replace(args=(_NATIVE.get(raw, raw), *others))]


def unsupported(layout: str) -> ImageError:
    """Return the error for a layout that cannot be read."""
    return ImageError(f"{layout}: save it as grey or RGB with 8 or 16 bits, not planar")


def is_reduced(tags: Tags) -> bool:
    """Tell whether a page is a smaller copy of another (a thumbnail, a level of a pyramid), or its mask."""
    return bool(tags.get(SUBFILE, 0) & (_REDUCED | _MASK)) or tags.get(OLD_SUBFILE, 1) == _OLD_REDUCED


def is_signed(tags: Tags) -> bool:
    """Tell whether levels have a sign."""
    return SIGNED in _numbers(tags, SAMPLE_FORMAT, 1)


def is_inverted(tags: Tags) -> bool:
    """Tell whether 0 is white."""
    return tags.get(PHOTOMETRIC) == MIN_IS_WHITE


def bits_of(tags: Tags) -> int:
    """Return the number of bits per channel, the most if they differ."""
    return int(max(_numbers(tags, BITS, 1)))


def stated_bits(tags: Tags) -> int:
    """Return the number of bits that the largest value needs, as the file states it; 0 if it does not."""
    stated = _numbers(tags, MAX_SAMPLE, 0) + _numbers(tags, SMAX_SAMPLE, 0)
    return int(max(stated)).bit_length()


def _numbers(tags: Tags, tag: int, default: int) -> tuple[Any, ...]:
    value = tags.get(tag, default)
    return tuple(value) if isinstance(value, (tuple, list)) and len(value) else (default,) if value == () else (value,)
