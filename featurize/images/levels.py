"""From stored grey levels and colours to 8 bits: ranges, signs, MinIsWhite, transparency."""

from __future__ import annotations

import io
import re
import struct
import sys
import zlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin

from xfeat.featurize.errors import ImageError
from xfeat.featurize.images import tiff_tags
from xfeat.featurize.images.jpeg_headers import read_jpeg_2000_header
from xfeat.featurize.specs import PreprocessSpec

_FULL = 65535
# Visible colours that differ by no more are one colour, rounded: then the picture is in the transparency.
_ONE_COLOUR = 8
_OTHER_BYTE = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}


class DeepLevels(NamedTuple):
    """Levels of more than 8 bits.

    Attributes:
        values: as stored, 0 to 65535, or floating-point 0 to 1: (H, W) grey, or uint16 (H, W, 2 to 4).
        own_bits: of its range, which the file states; ``None`` if it is that of the data set.
        most_bits: that this kind of file can hold.
        inverted: 0 is white.
        used_bits: that the file states as used, of its 16; 0 if it does not.
    """

    values: NDArray[Any]
    own_bits: int | None = None
    most_bits: int = 16
    inverted: bool = False
    used_bits: int = 0

    @property
    def has_alpha(self) -> bool:
        """Whether the last channel is transparency, which always has the full range."""
        return self.values.ndim == 3 and self.values.shape[2] in (2, 4)

    def highest(self, spec: PreprocessSpec) -> int:
        """Return the highest level in the spec's box, without transparency: burnt-in letters may be cut off."""
        height, width = self.values.shape[:2]
        left, top, right, bottom = spec.box(width, height)
        values = self.values[top:bottom, left:right]
        return int((values[..., :-1] if self.has_alpha else values).max())


def to_8_bits(image: ImageFile.ImageFile, data: bytes, grey_bits: int) -> Image.Image:
    """Return an image in mode ``L`` or ``RGB``; it is loaded here.

    Args:
        image: as Pillow opened it.
        data: content of its file.
        grey_bits: range of files with 16 bits per channel whose own range is not known; higher levels become white.

    Raises:
        ImageError: if the file does not say what is black and white, or in a way that is not known.
    """
    deep = read_deep(image, data, colours=grey_bits < 16)
    image.load()
    return grey_or_rgb(image if deep is None else scaled_to_8_bits(deep, grey_bits))


def grey_or_rgb(image: Image.Image) -> Image.Image:
    """Return a loaded image of 8 bits per channel in mode ``L`` or ``RGB``."""
    if image.mode in ("L", "RGB"):
        return image
    if image.mode != "1" and image.has_transparency_data:
        return _without_alpha(image.convert("LA" if image.mode in ("LA", "La") else "RGBA"))
    return image.convert("L" if image.mode == "1" else "RGB")


def scaled_to_8_bits(deep: DeepLevels, grey_bits: int) -> Image.Image:
    """Return levels as an image of 8 bits per channel; see :func:`to_8_bits`."""
    bits = min(grey_bits, deep.most_bits) if deep.own_bits is None else deep.own_bits
    if deep.values.dtype.kind == "f":
        levels = np.rint(deep.values * 255).astype(np.uint8)
    else:
        # The high bits: 8 bits come back as they were, whether they were shifted or multiplied to fill the range.
        levels = np.minimum(deep.values >> (bits - 8), 255).astype(np.uint8)
    if deep.has_alpha:
        levels[..., -1] = deep.values[..., -1] >> 8
    return Image.fromarray(255 - levels if deep.inverted else levels)


def _without_alpha(image: Image.Image) -> Image.Image:
    """Drop the transparency, unless it holds the picture: ink of one colour on nothing is laid on paper."""
    colour_mode = image.mode.removesuffix("A")
    alpha = np.asarray(image.getchannel("A"))
    if alpha.min() != alpha.max():
        visible = np.asarray(image.convert(colour_mode))[alpha > 0]
        if np.ptp(visible, axis=0).max() <= _ONE_COLOUR:
            paper = Image.new(colour_mode, image.size, "white" if visible.mean() < 128 else "black")
            paper.paste(image.convert(colour_mode), mask=image.getchannel("A"))
            return paper
    return image.convert(colour_mode)


def check_jpeg_2000(image: ImageFile.ImageFile, data: bytes) -> None:
    """Refuse JPEG 2000 files that Pillow opens, but reads wrongly.

    Raises:
        ImageError: if they have signs, or a number of bits of which Pillow keeps too few.
    """
    header = read_jpeg_2000_header(data)
    if header is None:
        return
    if header.bits < 8 or header.signed:
        sign = " with a sign" if header.signed else ""
        raise ImageError(f"JPEG 2000 of {header.bits} bits per channel{sign}: save it as PNG, or with 8 bits")
    if header.bits == 16 and not image.mode.startswith("I"):
        raise ImageError(
            "JPEG 2000, colours of 16 bits: Pillow keeps 8, of which a range cannot be found; save it as PNG"
        )


def read_deep(image: ImageFile.ImageFile, data: bytes, *, colours: bool) -> DeepLevels | None:
    """Return the levels of an image with more than 8 bits per channel as they are stored; ``None`` for others.

    Args:
        image: as Pillow opened it; grey levels of more than 8 bits are loaded here.
        data: content of its file.
        colours: read those with colours, too, of which Pillow keeps 8 bits.

    Raises:
        ImageError: if black and white are not known.
    """
    tags: tiff_tags.Tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    used_bits = tiff_tags.stated_bits(tags) or _significant_bits(data)
    if image.mode == "F":
        return DeepLevels(_floats(image), own_bits=16, inverted=tiff_tags.is_inverted(tags))
    if image.mode.startswith("I"):
        return _grey(image, data, tags)._replace(inverted=tiff_tags.is_inverted(tags), used_bits=used_bits)
    values = _colours(image, data) if colours else None
    return None if values is None else DeepLevels(values, used_bits=used_bits)


def _floats(image: ImageFile.ImageFile) -> NDArray[np.float32]:
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):
        raise ImageError(
            f"floating-point grey levels from {low:g} to {high:g}; white is known for 0 to 1 only: "
            "save it with 8 or 16 bits"
        )
    return values


def _grey(image: ImageFile.ImageFile, data: bytes, tags: tiff_tags.Tags) -> DeepLevels:
    # Pillow scales it by the white that the file states.
    scaled = bool(image.tile) and image.tile[0].codec_name == "ppm"
    if image.format == "JPEG2000" and (header := read_jpeg_2000_header(data)) is not None:
        scaled = header.bits != 16
    signed, stored = tiff_tags.is_signed(tags), tiff_tags.bits_of(tags) if tags else 16
    values = np.asarray(image)
    if image.mode == "I" and tags and not signed:
        values = values.view(np.uint32)
    low, high = int(values.min()), int(values.max())
    if low < 0:
        raise ImageError(f"signed grey levels from {low} to {high}: black and white are not known; save it unsigned")
    if high > _FULL:
        raise ImageError(f"32-bit grey levels up to {high}: white is not known; save it with 8 or 16 bits")
    return DeepLevels(
        values.astype(np.uint16),
        own_bits=16 if scaled else stored if 8 < stored < 16 else None,
        most_bits=15 if signed and stored == 16 else 16,
    )


def _colours(image: ImageFile.ImageFile, data: bytes) -> NDArray[np.uint16] | None:
    """Read 16 bits per channel: the high bytes with Pillow, and the low ones with the byte order exchanged."""
    raw = _raw_mode(image.tile[0]) if image.tile else ""
    if image.format == "PPM" and image.mode == "RGB" and tuple(image.tile[0].args or ())[1:2] == (_FULL,):
        return _ppm(image, data)
    if ";16" not in raw or image.mode not in ("RGB", "RGBA"):
        return None
    if raw == "LA;16B":
        return _grey_and_alpha(data)
    plain = raw.replace("RGBa", "RGBA")  # bytes can be put together before they are divided by the transparency
    image.tile = _with_raw_mode(image.tile, plain)
    with Image.open(io.BytesIO(data), formats=[str(image.format)]) as other:
        if page := image.tell():
            other.seek(page)
        other.tile = _with_raw_mode(other.tile, plain[:-1] + _OTHER_BYTE[plain[-1]])
        low = np.asarray(other)
    values: NDArray[np.uint16] = np.asarray(image).astype(np.uint16) << 8 | low
    if plain != raw:
        alpha = np.maximum(values[..., 3:], 1)
        values[..., :3] = np.minimum(values[..., :3].astype(np.uint32) * _FULL // alpha, _FULL)
    return values


def _ppm(image: ImageFile.ImageFile, data: bytes) -> NDArray[np.uint16]:
    count, offset = image.width * image.height * 3, image.tile[0].offset
    if image.tile[0].codec_name == "ppm":
        values = np.frombuffer(data, ">u2", count, offset)
    else:
        words = re.sub(rb"#[^\n]*", b"", data[offset:]).split(maxsplit=count)
        values = np.array(words[:count], np.uint16)
    return values.reshape(image.height, image.width, 3).astype(np.uint16)


def _raw_mode(tile: Any) -> str:
    return str(tile.args if isinstance(tile.args, str) else next(iter(tile.args or ()), ""))


def _with_raw_mode(tiles: list[Any], raw: str) -> list[Any]:
    return [tile._replace(args=raw if isinstance(tile.args, str) else (raw, *tile.args[1:])) for tile in tiles]


def _grey_and_alpha(data: bytes) -> NDArray[np.uint16]:
    """Read a PNG of grey and alpha with 16 bits each as one of four channels with 8 bits: the same bytes."""
    header = b"IHDR" + data[16:24] + b"\x08\x06" + data[26:29]
    patched = data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    with Image.open(io.BytesIO(patched), formats=["PNG"]) as image:
        return np.asarray(image).view(">u2").astype(np.uint16)


def _significant_bits(data: bytes) -> int:
    """Return the largest number of bits in the chunk sBIT of a PNG file, before its pixels; 0 without one."""
    at = data.find(b"sBIT", 0, data.find(b"IDAT") + 1) if data.startswith(b"\x89PNG") else -1
    length = int.from_bytes(data[at - 4 : at], "big") if at > 4 else 0
    return max(data[at + 4 : at + 4 + length], default=0) if 1 <= length <= 4 else 0
