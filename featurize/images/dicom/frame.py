"""Decodes one frame of a DICOM file: pydicom unpacks plain pixels, imagecodecs compressed ones.

docs/decisions/0076-dicom-decoders.md compares the decoders.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.errors import ImageError
from xfeat.featurize.images.dicom.header import PIXEL_DATA, Layout, import_pydicom
from xfeat.featurize.images.jpeg_headers import check_scans, read_jpeg_2000_header, read_jpeg_header

if TYPE_CHECKING:
    from pydicom import Dataset

# Source: DICOM PS3.6 annex A, table A-1: the last parts of the UIDs below 1.2.840.10008.1.2.
_ROOT = "1.2.840.10008.1.2"
_NATIVE = {_ROOT, f"{_ROOT}.1", f"{_ROOT}.2"}
_YBR = ("YBR_FULL", "YBR_FULL_422")
_RLE = f"{_ROOT}.5"
_LOSSLESS = {f"{_ROOT}.4.57", f"{_ROOT}.4.70"}
_JPEG = {f"{_ROOT}.4.{end}" for end in (50, 51, 53, 55)} | _LOSSLESS
_VIDEO = re.compile(rf"{re.escape(_ROOT)}\.4\.10\d(\.1)?")
_JPEG_LS = {f"{_ROOT}.4.{end}" for end in (80, 81)}
_JPEG_2000 = {f"{_ROOT}.4.{end}" for end in (90, 91, 201, 202, 203)}
# Names that pydicom 3.0 does not know.
_NAMES = {
    f"{_ROOT}.4.110": "JPEG XL Lossless",
    f"{_ROOT}.4.111": "JPEG XL JPEG Recompression",
    f"{_ROOT}.4.112": "JPEG XL",
    f"{_ROOT}.8.1": "Deflated Image Frame Compression",
    "1.2.840.113619.5.2": "Implicit VR Big Endian of GE",
}


class Frame(NamedTuple):
    """Pixels of one frame as they are stored.

    Attributes:
        values: (rows, columns) or (rows, columns, 3), in native byte order.
        stored: bits of each value that count.
        high: the highest of these bits.
        ybr: colour is in YCbCr.
    """

    values: NDArray[Any]
    stored: int
    high: int
    ybr: bool


def decode_frame(picture: Dataset, layout: Layout) -> Frame:
    """Decode the frame that the layout names, and no other.

    Args:
        picture: the tags of the file.
        layout: how the pixels are stored.

    Returns:
        The stored values, before rescaling and windows.

    Raises:
        ImageError: if the data are damaged, cut off, or compressed in a way that is not read; the reason has its name.
    """
    syntax = picture.file_meta.TransferSyntaxUID
    ybr = layout.photometric in _YBR
    if layout.photometric in ("YBR_RCT", "YBR_ICT") and syntax not in _JPEG_2000:
        raise ImageError(f"DICOM in {layout.photometric}, which only JPEG 2000 has")
    if syntax in _NATIVE:
        return Frame(_native(picture, layout), layout.stored, layout.high, ybr)
    name = _NAMES.get(syntax) or (syntax.name.split(",")[0] if syntax.name != syntax else f"transfer syntax {syntax}")
    if syntax not in {_RLE} | _JPEG | _JPEG_LS | _JPEG_2000:
        video = _VIDEO.fullmatch(syntax)
        fix = "save a frame of this video as a picture" if video else "save it uncompressed (gdcmconv --raw)"
        raise ImageError(f"DICOM in {name} is not read: {fix}")
    codecs = _codecs(name)
    try:
        data = _encapsulated(picture, layout)
        if syntax == _RLE:
            return Frame(_rle(codecs, data, layout), layout.stored, layout.high, ybr)
        return _decode_stream(codecs, data, syntax, name, layout)
    except ImageError:
        raise
    except Exception as error:  # each codec has an exception of its own
        raise ImageError(f"DICOM in {name} cannot be decoded: damaged or cut off") from error


def _decode_stream(codecs: Any, data: bytes, syntax: str, name: str, layout: Layout) -> Frame:
    """Decode JPEG, JPEG-LS or JPEG 2000, after a look at the size that it claims."""
    if syntax not in _JPEG_2000 and b"\xff\xd9" not in data[-4096:]:
        raise ImageError(f"DICOM in {name} is cut off: the end of the data is missing")
    header = read_jpeg_2000_header(data) if syntax in _JPEG_2000 else read_jpeg_header(data)
    if header is None:
        raise ImageError(f"DICOM in {name} cannot be decoded: damaged or cut off")
    found, said = header[:3], (layout.columns, layout.rows, layout.samples)
    if found != said:
        found_text, said_text = (f"{width}×{height} with {n} samples" for width, height, n in (found, said))
        raise ImageError(f"DICOM in {name} holds {found_text} per pixel, where its tags say {said_text}")
    if syntax in _JPEG:
        check_scans(data, f"DICOM in {name}", pixels=layout.rows * layout.columns)
        # The same name for both sides: libjpeg then converts no colour.
        space = "GRAYSCALE" if layout.samples == 1 else "YCBCR"
        values = codecs.jpeg8_decode(data, colorspace=space, outcolorspace=space)
    else:
        values = (codecs.jpegls_decode if syntax in _JPEG_LS else codecs.jpeg2k_decode)(data)
    shape = (layout.rows, layout.columns, layout.samples)[: 2 if layout.samples == 1 else 3]
    if values.shape != shape:
        raise ImageError(f"DICOM in {name} holds an array of {values.shape}, where its tags say {shape}")
    bits = header.bits
    if header.signed and not layout.signed:  # as in pydicom: the lowest value becomes 0
        values = (values.astype(np.int64) + 2 ** (bits - 1)).astype(f"u{values.dtype.itemsize}")
    elif layout.signed and not header.signed:  # the bits of a negative value come as a large one
        values, bits = values.view(f"i{values.dtype.itemsize}"), min(bits, layout.stored)
    elif syntax in _LOSSLESS or (not layout.signed and values.max() < 2**layout.stored):
        bits = min(bits, layout.stored)  # some encoders state the bits allocated
    # What the data say of their colour counts more than the tag, as in pydicom and dcmtk; lossless data keep the tag.
    return Frame(values, bits, bits - 1, ybr=layout.photometric in _YBR if header.ybr is None else header.ybr)


def _codecs(name: str) -> Any:
    try:
        import imagecodecs
    except ModuleNotFoundError as error:
        raise ImageError(f"DICOM in {name} needs imagecodecs: pip install 'xfeat-onnx[dicom]'") from error
    return imagecodecs


def _native(picture: Dataset, layout: Layout) -> NDArray[Any]:
    pydicom = import_pydicom()
    keyword = next(name for name in PIXEL_DATA if name in picture)
    element = picture[keyword]
    if element.is_undefined_length or element.value is None:
        raise ImageError("DICOM with compressed pixels whose transfer syntax says that they are not compressed")
    needed = -(-layout.frame_bits * (layout.frame + 1) // 8)
    if len(element.value) < needed:
        raise ImageError(f"DICOM pixel data are cut off: {len(element.value)} of {needed} bytes")
    picture.SamplesPerPixel, picture.NumberOfFrames = layout.samples, layout.frames
    picture.BitsStored, picture.HighBit = layout.stored, layout.stored - 1
    picture.PixelRepresentation = int(layout.signed)
    # Ultrasound devices write YBR_FULL_422 also where no colour was left out; if cut off, it is not smaller.
    found, halved = len(element.value), layout.frames * layout.frame_bits // 8
    whole = layout.photometric == "YBR_FULL_422" and 2 * found >= 3 * halved
    if layout.photometric == "YBR_FULL_422" and not whole and found > halved + 1:  # an odd length has a byte more
        raise ImageError(f"DICOM pixel data are cut off: {found} of {3 * halved // 2} bytes")
    picture.PhotometricInterpretation = "YBR_FULL" if whole else layout.photometric
    if layout.samples == 3 and picture.get("PlanarConfiguration") in (None, ""):
        picture.PlanarConfiguration = 0
    values: NDArray[Any] = pydicom.pixels.get_decoder(picture.file_meta.TransferSyntaxUID).as_array(
        picture, index=layout.frame, raw=True, validate=False, correct_unused_bits=False
    )[0]
    return values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))


def _encapsulated(picture: Dataset, layout: Layout) -> bytes:
    offsets = tuple(picture.get(keyword) for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"))
    data: bytes = import_pydicom().encaps.get_frame(
        picture.PixelData,
        layout.frame,
        number_of_frames=layout.frames,
        extended_offsets=offsets if all(offsets) else None,
    )
    return data


def _rle(codecs: Any, data: bytes, layout: Layout) -> NDArray[Any]:
    kind = np.dtype(f"{'ui'[layout.signed]}{layout.allocated // 8}")
    size = layout.rows * layout.columns * layout.samples
    packed = codecs.dicomrle_decode(data, kind, out=size * kind.itemsize)
    values = np.frombuffer(packed, kind, count=size)
    if layout.samples == 1:
        return values.reshape(layout.rows, layout.columns)
    return np.moveaxis(values.reshape(layout.samples, layout.rows, layout.columns), 0, -1)
