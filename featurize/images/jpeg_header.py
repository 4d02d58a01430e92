"""Which JPEG files another decoder than Pillow may take: docs/decisions/0015-jpeg-on-the-gpu.md."""

from __future__ import annotations

import io
from typing import NamedTuple

from PIL import Image

from xfeat.featurize.images.decode import BROKEN, MAX_PIXELS, is_truncated, turn_of

# Components named after their colours, and Adobe's transform 0, say that there is no luminance in the file.
_COLOUR_NAMES = tuple(b"RGB")
_ADOBE_YCC = 1


class PlainJpeg(NamedTuple):
    """A whole JPEG file that holds upright grey levels, or luminance and colour, in 8 bits.

    Attributes:
        data: its content.
        width: pixels.
        height: pixels.
        grey: one channel, else RGB.
    """

    data: bytes
    width: int
    height: int
    grey: bool


def plain_jpeg(data: bytes, *, max_pixels: int = MAX_PIXELS) -> PlainJpeg | None:
    """Look at the header of a file.

    Args:
        data: content of a file.
        max_pixels: larger images are left to Pillow's path, which refuses them.

    Returns:
        ``None`` if Pillow is to decode the file or to say what is wrong with it: if it is no JPEG, is cut short, is
        turned by its EXIF data, has several pictures, or other colours than grey and YCbCr.
    """
    if data[:2] != b"\xff\xd8" or is_truncated(data):
        return None
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG",))
        width, height = image.size
        names = tuple(component[0] for component in getattr(image, "layer", ()))
        plain = (
            image.format == "JPEG"
            and image.mode in ("L", "RGB")
            and width * height <= max_pixels
            and names != _COLOUR_NAMES
            and image.info.get("adobe_transform", _ADOBE_YCC) == _ADOBE_YCC
            and turn_of(image) is None
        )
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, *BROKEN):
        return None
    return PlainJpeg(data, width, height, image.mode == "L") if plain else None
