"""From stored grey levels and colours to 8 bits: ranges, signs, MinIsWhite, transparency."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin

from xfeat.featurize.errors import ImageError
from xfeat.featurize.images import tiff_tags

_FULL = 65535
# Visible colours that differ by no more are one colour, rounded: then the picture is in the transparency.
_ONE_COLOUR = 8
_SIZ = b"\xff\x4f\xff\x51"  # of JPEG 2000; Source: ITU-T T.800, A.5.1: Ssiz is 40 bytes after the marker SIZ
_SSIZ = 42
_OTHER_BYTE = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}


class DeepLevels(NamedTuple):
    """Levels of more than 8 bits.

    Attributes:
        values: as stored, 0 to 65535, or floating-point 0 to 1: (H, W) grey, or uint16 (H, W, 3 or 4).
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
    def highest(self) -> int:
        """The highest level, without transparency."""
        alpha = self.values.ndim == 3 and self.values.shape[2] in (2, 4)
        return int((self.values[..., :-1] if alpha else self.values).max())


def to_8_bits(image: ImageFile.ImageFile, data: bytes, grey_bits: int) -> Image.Image:
    """Return an image in mode ``L`` or ``RGB``.

    Args:
        image: as Pillow opened it; it is loaded here.
        data: content of its file.
        grey_bits: range of files with 16 bits per channel whose own range is not known; higher levels become white.

    Raises:
        ImageError: if the file does not say what is black and white, or in a way that is not known.
    """
    deep = read_deep(image, data, colours=grey_bits < 16)
    image.load()
    return _grey_or_rgb(image if deep is None else _scaled(deep, grey_bits))


def _grey_or_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("L", "RGB"):
        return image
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.mode == "PA" or (image.mode == "P" and "transparency" in image.info):
        image = image.convert("RGBA")  # Pillow warns about the direct conversion
    return _without_alpha(image) if image.mode in ("LA", "RGBA") else image.convert("RGB")


def _scaled(deep: DeepLevels, grey_bits: int) -> Image.Image:
    bits = min(grey_bits, deep.most_bits) if deep.own_bits is None else deep.own_bits
    if deep.values.dtype.kind == "f":
        levels = np.rint(deep.values * 255).astype(np.uint8)
    else:
        # The high bits: 8 bits come back as they were, whether they were shifted or multiplied to fill the range.
        levels = np.minimum(deep.values >> (bits - 8), 255).astype(np.uint8)
    if levels.ndim == 3 and levels.shape[2] in (2, 4):
        levels[..., -1] = deep.values[..., -1] >> 8  # transparency always has the full range
    return Image.fromarray(255 - levels if deep.inverted else levels)


def _without_alpha(image: Image.Image) -> Image.Image:
    """Drop the transparency, unless it holds the picture: ink of one colour on nothing is laid on paper."""
    colour_mode = image.mode.removesuffix("A")
    alpha = np.asarray(image.getchannel("A"))
    if alpha.min() != alpha.max():
        visible = np.asarray(image.convert(colour_mode))[alpha > 0]
        if np.ptp(visible, axis=0).max() <= _ONE_COLOUR:
            paper = Image.new(image.mode, image.size, "white" if visible.mean() < 128 else "black")
            paper.alpha_composite(image) if image.mode == "RGBA" else paper.paste(image, mask=image.getchannel("A"))
            image = paper
    return image.convert(colour_mode)


def read_deep(image: ImageFile.ImageFile, data: bytes, *, colours: bool) -> DeepLevels | None:
    """Return the levels of an image with more than 8 bits per channel as they are stored; ``None`` for others.

    Args:
        image: as Pillow opened it; grey levels of more than 8 bits are loaded here.
        data: content of its file.
        colours: read those with colours, too, of which Pillow keeps 8 bits.

    Raises:
        ImageError: if black and white are not known.
    """
    if image.mode.startswith("I") or image.mode == "F":
        return _grey(image, data)
    if image.format == "JPEG2000" and _jpeg_2000_bits(data) == 16:
        raise ImageError(
            "JPEG 2000, colours of 16 bits: Pillow keeps 8, of which a range cannot be found; save it as PNG"
        )
    return _colours(image, data) if colours else None


def _grey(image: ImageFile.ImageFile, data: bytes) -> DeepLevels:
    # Pillow scales it by the white that the file states.
    scaled = bool(image.tile) and image.tile[0].codec_name == "ppm"
    if image.format == "JPEG2000":
        scaled = 8 < _jpeg_2000_bits(data) < 16
    tags: tiff_tags.Tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    values = np.asarray(image)
    if image.mode == "F":
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):
            raise ImageError(
                f"floating-point grey levels from {low:g} to {high:g}; white is known for 0 to 1 only: "
                "save it with 8 or 16 bits"
            )
        return DeepLevels(values, own_bits=16, inverted=_is_inverted(tags))
    signed = tiff_tags.is_signed(tags)
    if image.mode == "I" and tags and not signed:
        values = values.view(np.uint32)
    low, high = int(values.min()), int(values.max())
    if low < 0:
        raise ImageError(f"signed grey levels from {low} to {high}: black and white are not known; save it unsigned")
    if high > _FULL:
        raise ImageError(f"32-bit grey levels up to {high}: white is not known; save it with 8 or 16 bits")
    stored = tiff_tags.bits_of(tags)
    return DeepLevels(
        values.astype(np.uint16),
        own_bits=16 if scaled else stored if 8 < stored < 16 else None,
        most_bits=15 if signed and stored == 16 else 16,
        inverted=_is_inverted(tags),
        used_bits=tiff_tags.stated_bits(tags) or _significant_bits(data),
    )


def _colours(image: ImageFile.ImageFile, data: bytes) -> DeepLevels | None:
    """Read 16 bits per channel: the high bytes with Pillow, and the low ones with the byte order exchanged."""
    raw = _raw_mode(image.tile[0]) if image.tile else ""
    if image.format == "PPM" and image.mode == "RGB" and tuple(image.tile[0].args or ())[1:2] == (_FULL,):
        return DeepLevels(_ppm(image, data))
    if ";16" not in raw or image.mode not in ("RGB", "RGBA"):
        return None
    if raw == "LA;16B":
        return DeepLevels(_grey_and_alpha(data), used_bits=_significant_bits(data))
    with Image.open(io.BytesIO(data), formats=[str(image.format)]) as other:
        if page := image.tell():
            other.seek(page)
        other.tile = [_with_raw_mode(tile, raw[:-1] + _OTHER_BYTE[raw[-1]]) for tile in other.tile]
        low = np.asarray(other)
    values = np.asarray(image).astype(np.uint16) << 8 | low
    tags: tiff_tags.Tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    return DeepLevels(values, used_bits=tiff_tags.stated_bits(tags) or _significant_bits(data))


def _jpeg_2000_bits(data: bytes) -> int:
    at = data.find(_SIZ) + _SSIZ
    return (data[at] & 127) + 1 if _SSIZ <= at < len(data) else 8


def _ppm(image: ImageFile.ImageFile, data: bytes) -> NDArray[np.uint16]:
    count, offset = image.width * image.height * 3, image.tile[0].offset
    if image.tile[0].codec_name == "ppm":
        values = np.frombuffer(data, ">u2", count, offset)
    else:
        values = np.array(data[offset:].split(maxsplit=count)[:count], np.uint16)
    return values.reshape(image.height, image.width, 3).astype(np.uint16)


def _raw_mode(tile: Any) -> str:
    return str(tile.args if isinstance(tile.args, str) else next(iter(tile.args or ()), ""))


def _with_raw_mode(tile: Any, raw: str) -> Any:
    return tile._replace(args=raw if isinstance(tile.args, str) else (raw, *tile.args[1:]))


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


def _is_inverted(tags: tiff_tags.Tags) -> bool:
    return bool(tags) and tags.get(tiff_tags.PHOTOMETRIC) == tiff_tags.MIN_IS_WHITE
