"""Decodes image files. Featurizing and serving both use this module, so that their pixels agree."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from xfeat.featurize.errors import ImageError
from xfeat.featurize.images.dicom.decode import decode_dicom
from xfeat.featurize.images.file_kinds import describe_kind, image_kind, is_dicom
from xfeat.featurize.images.frames import choose_frame
from xfeat.featurize.images.jpeg_headers import check_scans, read_jpeg_header
from xfeat.featurize.images.kornia_png import decode_plain_png
from xfeat.featurize.images.levels import DeepLevels, check_jpeg_2000, read_deep, to_8_bits
from xfeat.featurize.images.limits import MAX_PIXELS, BoundedFile, check_size
from xfeat.featurize.images.tiff_tags import check_tiff, correct_byte_order, layout_of, unsupported
from xfeat.featurize.specs import PreprocessSpec
from xfeat.featurize.system.time_limit import limited

# As in the tutorial: of an image whose end is missing, the part that is there is used. Pillow's plugins read this
# variable of the module, and there is no setting per image.
ImageFile.LOAD_TRUNCATED_IMAGES = True
# For each Pillow copies up to a megabyte.
_MOST_COMMENTS = 1000

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "JPEG2000", "PPM", "AVIF")
DEFAULT_SPEC = PreprocessSpec()
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
# How JPEG and PNG files begin, and what ends them. Some cameras write a few bytes after that.
_END_MARKERS = {b"\xff\xd8": b"\xff\xd9", b"\x89PNG": b"IEND"}


@limited(_LIMIT_S, "decoded")
def decode(data: bytes, spec: PreprocessSpec = DEFAULT_SPEC, *, may_hold_gil: bool = False) -> Image.Image:
    """Decode an image file to 8-bit grey or RGB, upright.

    Grey images stay grey (mode ``L``): resizing one channel and then repeating it gives the same pixels as resizing
    three, in a third of the time. Palettes and CMYK become RGB. Transparency is dropped, unless it holds the picture.
    More than 8 bits are scaled to 8 by the white that the file states, or else by that of the spec.

    Args:
        data: content of a DICOM file, or of one of :data:`FORMATS`. Images of more than 100 megapixels are refused
            after their header has been read, before they are decoded.
        spec: how it is read; see :class:`xfeat.featurize.specs.PreprocessSpec`.
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
        return decode_dicom(data, spec.frames)
    if may_hold_gil and (plain := decode_plain_png(data)) is not None:
        return plain
    with _reasons(data):
        image = _open(data, spec)
        return upright(image, to_8_bits(image, data, spec.grey_bits))


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
    with _reasons(data):
        return read_deep(_open(data, spec), data, colours=True)


def _open(data: bytes, spec: PreprocessSpec) -> ImageFile.ImageFile:
    """Open an image with Pillow and go to the frame to be read; check what can be checked before decoding."""
    jpeg = read_jpeg_header(data)
    if jpeg is not None and (jpeg.lossless or jpeg.bits != 8):
        compressed = "lossless JPEG" if jpeg.lossless else "JPEG"
        raise ImageError(f"{compressed} with {jpeg.bits} bits per channel: save it as PNG, or as JPEG with 8 bits")
    image = Image.open(BoundedFile(data), formats=(*FORMATS, *_heif_formats()))
    check_size(*image.size)
    if image.format == "PPM" and image.tile[0].codec_name == "ppm_plain" and data.count(b"#") > _MOST_COMMENTS:
        raise ImageError(f"PPM of more than {_MOST_COMMENTS} comments")
    if jpeg is not None:
        check_scans(data, "JPEG", pixels=image.width * image.height)
    choose_frame(image, data, spec.frames)
    check_size(*image.size)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        check_tiff(image.tag_v2)
        correct_byte_order(image)
    if image.format == "JPEG2000":
        check_jpeg_2000(image, data)
    return image


@contextmanager
def _reasons(data: bytes) -> Iterator[None]:
    """Turn the errors of Pillow into reasons."""
    try:
        yield
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"more than {MAX_PIXELS // 1_000_000} megapixels") from error
    except UnidentifiedImageError as error:
        raise _unidentified(data) from error
    except Exception as error:  # Pillow raises many exceptions on damaged files, without a common base
        kind, reason = image_kind(data), next(iter(str(error).splitlines()), type(error).__name__)
        layout = layout_of(data) if kind == "TIFF" else ""
        raise ImageError(f"{layout or kind} cannot be decoded: {reason}".lstrip()) from error


def _unidentified(data: bytes) -> ImageError:
    """Return the error for a file that Pillow does not open: it names what the file is."""
    kind = image_kind(data)
    if kind == "TIFF" and (layout := layout_of(data)):
        return unsupported(layout)
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
    return any(data.startswith(start) and end not in data[-4096:] for start, end in _END_MARKERS.items())


def upright(image: Image.Image, levels: Image.Image) -> Image.Image:
    """Rotate or mirror the ``levels`` as the EXIF orientation of their image says; with damaged EXIF data they stay.

    ``ImageOps.exif_transpose`` also rewrites the EXIF data, and fails on any damaged tag. The image is loaded: Pillow
    rotates TIFF images itself then, and removes the tag.
    """
    transpose = None
    with suppress(Exception):
        transpose = _TRANSPOSES.get(image.getexif().get(_ORIENTATION, 1))
    return levels if transpose is None else levels.transpose(transpose)
