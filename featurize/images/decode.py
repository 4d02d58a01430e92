"""Decodes image files. Featurizing and serving both use this module, so that their pixels agree."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from xfeat.featurize.errors import ImageError
from xfeat.featurize.images.dicom import decode_dicom, is_dicom
from xfeat.featurize.images.kornia_png import decode_plain_png

# As in the tutorial: of an image whose end is missing, the part that is there is used. Pillow's plugins read this
# variable of the module, and there is no setting per image.
ImageFile.LOAD_TRUNCATED_IMAGES = True

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "JPEG2000", "PPM", "AVIF")
# A 140 kB PNG can hold 144 megapixels. The largest detectors in radiography have about 20.
MAX_PIXELS = 100_000_000

# The exceptions that Pillow raises for damaged files.
_DECODING_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    MemoryError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    struct.error,
    zlib.error,
)
# Source: the EXIF standard, tag Orientation.
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112
_END_MARKERS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS, may_hold_gil: bool = False) -> Image.Image:
    """Decode an image file to 8-bit grey or RGB, upright.

    Grey images stay grey (mode ``L``): resizing one channel and then repeating it gives the same pixels as resizing
    three, in a third of the time. Alpha is dropped, palettes and CMYK become RGB, 16-bit grey is scaled to 8 bits
    over its full range (Pillow's own conversion clips it to white).

    Args:
        data: content of a DICOM file, or of one of :data:`FORMATS`.
        max_pixels: larger images are refused after their header has been read, before they are decoded.
        may_hold_gil: allow a PNG decoder that holds the GIL: the same pixels in less than half of the time, but other
            threads cannot run Python meanwhile.

    Returns:
        An image of mode ``L`` or ``RGB``.

    Raises:
        ImageError: if the bytes cannot be decoded; the message is the reason.
    """
    if not data:
        raise ImageError("the file is empty")
    if is_dicom(data):
        return decode_dicom(data, max_pixels=max_pixels)
    if may_hold_gil and (plain := decode_plain_png(data, max_pixels=max_pixels)) is not None:
        return plain
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > max_pixels:
            raise ImageError(f"{width}×{height} is more than {max_pixels / 1e6:.0f} megapixels")
        return _to_8_bits(_upright(image))
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"more than {max_pixels / 1e6:.0f} megapixels") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"not a {', '.join(FORMATS)} image") from error
    except _DECODING_ERRORS as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ImageError(f"cannot be decoded: {reason}") from error


def is_truncated(data: bytes) -> bool:
    """Tell whether a JPEG or PNG lacks its end marker; other formats count as complete."""
    kind = "JPEG" if data[:2] == b"\xff\xd8" else "PNG" if data[:4] == b"\x89PNG" else None
    # Some cameras write a few bytes after the marker.
    return kind is not None and _END_MARKERS[kind] not in data[-4096:]


def _upright(image: Image.Image) -> Image.Image:
    """Rotate or mirror an image as its EXIF orientation says; with damaged EXIF data it stays as it is.

    ``ImageOps.exif_transpose`` also rewrites the EXIF data, and fails on any damaged tag.
    """
    image.load()  # first: Pillow rotates TIFF images itself, and removes the tag
    try:
        transpose = _TRANSPOSES.get(image.getexif().get(_ORIENTATION, 1))
    except _DECODING_ERRORS:
        return image
    return image if transpose is None else image.transpose(transpose)


def _to_8_bits(image: Image.Image) -> Image.Image:
    if image.mode in ("L", "RGB"):
        image.load()
        return image
    if image.mode.startswith("I;16"):
        return _scale_16_bits(np.asarray(image))
    if image.mode == "I":
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError("32-bit grey levels outside 0 to 65535: save the image with 8 or 16 bits")
        return _scale_16_bits(values)
    if image.mode == "F":
        raise ImageError("floating-point grey levels have no defined white: save the image with 8 or 16 bits")
    if image.mode in ("1", "LA", "La"):
        return image.convert("L")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns about the direct conversion
    return image.convert("RGB")


def _scale_16_bits(values: np.ndarray) -> Image.Image:
    # 65535 / 257 = 255, so black stays black and white stays white.
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
