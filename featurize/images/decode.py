"""Decodes image files. Featurizing and serving both use this module, so that their pixels agree."""

from __future__ import annotations

import importlib
import importlib.util
import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from xfeat.featurize.errors import ImageError
from xfeat.featurize.images.dicom import decode_dicom, is_dicom
from xfeat.featurize.images.file_kinds import HEAD_BYTES, describe_kind, image_kind
from xfeat.featurize.images.frames import choose_frame
from xfeat.featurize.images.jpeg_header import read_jpeg_header
from xfeat.featurize.images.kornia_png import decode_plain_png
from xfeat.featurize.images.levels import DeepLevels, read_deep, to_8_bits
from xfeat.featurize.images.tiff_tags import (
    STRIPS,
    TILES,
    WIDTH,
    check_tiff,
    correct_byte_order,
    read_tags,
    unsupported,
)
from xfeat.featurize.specs import PreprocessSpec
from xfeat.featurize.system.time_limit import limited

# As in the tutorial: of an image whose end is missing, the part that is there is used. Pillow's plugins read this
# variable of the module, and there is no setting per image.
ImageFile.LOAD_TRUNCATED_IMAGES = True

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "JPEG2000", "PPM", "AVIF")
# A 140 kB PNG can hold 144 megapixels. The largest detectors in radiography have about 20.
MAX_PIXELS = 100_000_000
DEFAULT_SPEC = PreprocessSpec()
# A progressive JPEG of 150 kB can have 2,000 scans, which take half a minute; cameras and editors write about ten. An
# image may be gone over so often that together it is 20 of the largest.
_MOST_SCANS = 100
_MOST_DECODED = 20 * MAX_PIXELS

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
# A hundred times as long as any good image takes; some decoders of damaged files do not end.
_LIMIT_S = 60.0
_END_MARKERS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}


@limited(_LIMIT_S, "decoded")
def decode(
    data: bytes,
    spec: PreprocessSpec = DEFAULT_SPEC,
    *,
    max_pixels: int = MAX_PIXELS,
    may_hold_gil: bool = False,
) -> Image.Image:
    """Decode an image file to 8-bit grey or RGB, upright.

    Grey images stay grey (mode ``L``): resizing one channel and then repeating it gives the same pixels as resizing
    three, in a third of the time. Palettes and CMYK become RGB. Transparency is dropped, unless it holds the picture.
    More than 8 bits are scaled to 8 by the white that the file states, or else by that of the spec.

    Args:
        data: content of a DICOM file, or of one of :data:`FORMATS`.
        spec: how it is read; see :class:`xfeat.featurize.specs.PreprocessSpec`.
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
        return decode_dicom(data, max_pixels=max_pixels, frames=spec.frames)
    if may_hold_gil and (plain := decode_plain_png(data, max_pixels=max_pixels)) is not None:
        return plain
    with _reasons(data, max_pixels):
        image = _open(data, spec, max_pixels)
        return _upright(image, to_8_bits(image, data, spec.grey_bits))


def read_levels(data: bytes, spec: PreprocessSpec = DEFAULT_SPEC) -> DeepLevels | None:
    """Return the levels of an image file with more than 8 bits per channel, as stored.

    Args:
        data: content of a file.
        spec: which of several frames is read.

    Returns:
        ``None`` if it has 8 bits per channel, or is a DICOM file: those state their range.

    Raises:
        ImageError: if the bytes cannot be decoded.
    """
    if is_dicom(data):
        return None
    with _reasons(data, MAX_PIXELS):
        image = _open(data, spec, MAX_PIXELS)
        return read_deep(image, data, colours=True)


def _open(data: bytes, spec: PreprocessSpec, max_pixels: int) -> ImageFile.ImageFile:
    """Open an image with Pillow and go to the frame to be read; check what can be checked before decoding."""
    jpeg = read_jpeg_header(data, most_scans=_MOST_SCANS)
    if jpeg is not None and (jpeg.lossless or jpeg.bits not in (0, 8)):
        compressed = "lossless JPEG" if jpeg.lossless else "JPEG"
        raise ImageError(f"{compressed} with {jpeg.bits} bits per channel: save it as PNG, or as JPEG with 8 bits")
    image = Image.open(io.BytesIO(data), formats=(*FORMATS, *_heif_formats()))
    _check_size(image, max_pixels)
    most_scans = min(_MOST_SCANS, _MOST_DECODED // max(1, image.width * image.height))
    if jpeg is not None and jpeg.scans > most_scans:
        raise ImageError(f"JPEG of more than {most_scans} scans, each over the whole image, would take too long")
    choose_frame(image, data, spec.frames, most_pixels=_MOST_DECODED)
    _check_size(image, max_pixels)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        check_tiff(image.tag_v2)
        correct_byte_order(image)
    return image


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(f"{width}×{height} is more than {max_pixels / 1e6:.0f} megapixels")


@contextmanager
def _reasons(data: bytes, max_pixels: int) -> Iterator[None]:
    """Turn the errors of Pillow into reasons."""
    try:
        yield
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"more than {max_pixels / 1e6:.0f} megapixels") from error
    except UnidentifiedImageError as error:
        raise _unidentified(data) from error
    except _DECODING_ERRORS as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ImageError(f"{image_kind(data[:HEAD_BYTES])} cannot be decoded: {reason}".lstrip()) from error


def _unidentified(data: bytes) -> ImageError:
    """Return the error for a file that Pillow does not open: it names what the file is."""
    kind = image_kind(data[:HEAD_BYTES])
    if kind == "TIFF":
        with suppress(*_DECODING_ERRORS):
            tags = read_tags(data)
            if WIDTH in tags and not {STRIPS, TILES}.isdisjoint(tags):
                return unsupported(tags)
    if kind == "HEIC" and not _heif_formats():
        return ImageError("HEIC files need pip install 'xfeat-onnx[heic]'")
    if kind:
        return ImageError(f"damaged {kind}: its header cannot be read")
    return ImageError(f"{describe_kind(data)}, not a {', '.join(FORMATS)} image")


@cache
def _heif_formats() -> tuple[str, ...]:
    """Return Pillow's name for HEIC files if a package that decodes them is installed."""
    for name in ("pi_heif", "pillow_heif"):
        if importlib.util.find_spec(name) is not None:
            importlib.import_module(name).register_heif_opener()
            return ("HEIF",)
    return ()


def is_truncated(data: bytes) -> bool:
    """Tell whether a JPEG or PNG lacks its end marker; other formats count as complete."""
    kind = "JPEG" if data[:2] == b"\xff\xd8" else "PNG" if data[:4] == b"\x89PNG" else None
    # Some cameras write a few bytes after the marker.
    return kind is not None and _END_MARKERS[kind] not in data[-4096:]


def _upright(image: Image.Image, levels: Image.Image) -> Image.Image:
    """Rotate or mirror the ``levels`` as the EXIF orientation of their image says; with damaged EXIF data they stay.

    ``ImageOps.exif_transpose`` also rewrites the EXIF data, and fails on any damaged tag. The image is loaded: Pillow
    rotates TIFF images itself then, and removes the tag.
    """
    try:
        transpose = _TRANSPOSES.get(image.getexif().get(_ORIENTATION, 1))
    except _DECODING_ERRORS:
        return levels
    return levels if transpose is None else levels.transpose(transpose)
