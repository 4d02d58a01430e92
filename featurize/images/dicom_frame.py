"""Decodes one frame of a DICOM file: pydicom unpacks plain pixels, imagecodecs compressed ones.

docs/decisions/0076-dicom-decoders.md compares the decoders.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.errors import ImageError
from xfeat.featurize.images.dicom_file import Layout, import_pydicom

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
# Start of frame in JPEG and JPEG-LS; C4, C8 and CC are other markers. Source: ISO/IEC 10918-1 table B.1, 14495-1 C.1.
_FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
# As for JPEG files.
_MAX_SCANS, _MAX_DECODED = 100, 2_000_000_000


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Pixels of one frame as they are stored.

    Args:
        values: (rows, columns) or (rows, columns, 3), in native byte order.
        stored: bits of each value that count.
        high: the highest of these bits.
        ybr: colour is in YCbCr.
    """

    values: NDArray[Any]
    stored: int
    high: int
    ybr: bool


@dataclass(frozen=True, kw_only=True)
class _Stream:
    """The header of compressed data; ``ybr`` is ``None`` if it does not say."""

    width: int
    height: int
    samples: int
    bits: int
    signed: bool = False
    ybr: bool | None = None
    scans: int = 1


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
        return Frame(values=_native(picture, layout), stored=layout.stored, high=layout.high, ybr=ybr)
    name = _NAMES.get(syntax) or (syntax.name.split(",")[0] if syntax.name != syntax else f"transfer syntax {syntax}")
    if syntax not in {_RLE} | _JPEG | _JPEG_LS | _JPEG_2000:
        video = _VIDEO.fullmatch(syntax)
        fix = "save a frame of this video as a picture" if video else "save it uncompressed (gdcmconv --raw)"
        raise ImageError(f"DICOM in {name} is not read: {fix}")
    codecs = _codecs(name)
    try:
        data = _encapsulated(picture, layout)
        if syntax == _RLE:
            return Frame(values=_rle(codecs, data, layout), stored=layout.stored, high=layout.high, ybr=ybr)
        return _decode_stream(codecs, data, syntax, name, layout)
    except ImageError:
        raise
    except Exception as error:  # each codec has an exception of its own
        raise ImageError(f"DICOM in {name} cannot be decoded: damaged or cut off") from error


def _decode_stream(codecs: Any, data: bytes, syntax: str, name: str, layout: Layout) -> Frame:
    """Decode JPEG, JPEG-LS or JPEG 2000, after a look at the size that it claims."""
    stream = _jpeg_2000_header(data) if syntax in _JPEG_2000 else _jpeg_header(data, name)
    found, said = (stream.width, stream.height, stream.samples), (layout.columns, layout.rows, layout.samples)
    if found != said:
        found_text, said_text = (f"{width}×{height} with {n} samples" for width, height, n in (found, said))
        raise ImageError(f"DICOM in {name} holds {found_text} per pixel, where its tags say {said_text}")
    if stream.scans > min(_MAX_SCANS, _MAX_DECODED // (stream.width * stream.height)):
        raise ImageError(f"DICOM in {name} with {stream.scans} scans, each over the whole image, takes too long")
    if syntax in _JPEG:
        values = codecs.jpeg8_decode(data, colorspace=_raw_space(layout), outcolorspace=_raw_space(layout))
    else:
        values = (codecs.jpegls_decode if syntax in _JPEG_LS else codecs.jpeg2k_decode)(data)
    shape = (layout.rows, layout.columns) if layout.samples == 1 else (layout.rows, layout.columns, layout.samples)
    if values.shape != shape:
        raise ImageError(f"DICOM in {name} holds an array of {values.shape}, where its tags say {shape}")
    tag_ybr = layout.photometric in _YBR
    bits = stream.bits
    if layout.signed != stream.signed:
        # Only JPEG 2000 knows signs: elsewhere the bits of a negative value come as a large one.
        values, bits = values.view(f"{'ui'[layout.signed]}{values.dtype.itemsize}"), min(bits, layout.stored)
    elif syntax in _LOSSLESS:
        bits = min(bits, layout.stored)
    return Frame(values=values, stored=bits, high=bits - 1, ybr=tag_ybr if stream.ybr is None else stream.ybr)


def _codecs(name: str) -> Any:
    try:
        import imagecodecs
    except ModuleNotFoundError as error:
        raise ImageError(f"DICOM in {name} needs imagecodecs: pip install 'xfeat-onnx[dicom]'") from error
    return imagecodecs


def _native(picture: Dataset, layout: Layout) -> NDArray[Any]:
    pydicom = import_pydicom()
    keyword = next(name for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData") if name in picture)
    element = picture[keyword]
    if element.is_undefined_length or element.value is None:
        raise ImageError("DICOM with compressed pixels whose transfer syntax says that they are not compressed")
    needed = -(-layout.frame_bits * (layout.frame + 1) // 8)
    if len(element.value) < needed:
        raise ImageError(f"DICOM pixel data are cut off: {len(element.value)} of {needed} bytes")
    picture.SamplesPerPixel, picture.NumberOfFrames = layout.samples, layout.frames
    picture.BitsStored, picture.HighBit = layout.stored, layout.stored - 1
    picture.PixelRepresentation = int(layout.signed)
    # Ultrasound devices write YBR_FULL_422 also where no colour was left out.
    whole = (
        layout.photometric == "YBR_FULL_422" and 2 * len(element.value) >= 3 * layout.frames * layout.frame_bits // 8
    )
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


def _raw_space(layout: Layout) -> str:
    # The same name for both sides: libjpeg then converts no colour.
    return "GRAYSCALE" if layout.samples == 1 else "YCBCR"


def _jpeg_header(data: bytes, name: str) -> _Stream:
    """Read the frame header of JPEG or JPEG-LS data, without decoding."""
    if b"\xff\xd9" not in data[-4096:]:
        raise ImageError(f"DICOM in {name} is cut off: the end of the data is missing")
    position, jfif, adobe = 2, False, None
    while data[position] == 0xFF:
        marker, length = struct.unpack_from(">xBH", data, position)
        if marker == 0xFF:
            position += 1
            continue
        content = data[position + 4 : position + 2 + length]
        if marker == 0xE0 and content.startswith(b"JFIF"):
            jfif = True
        if marker == 0xEE and content.startswith(b"Adobe") and len(content) >= 12:
            adobe = content[11]
        if marker in _FRAME_MARKERS:
            bits, height, width, parts = struct.unpack_from(">BHHB", content)
            names = content[6 : 6 + 3 * parts : 3]
            break
        position += 2 + length
    else:
        raise ImageError(f"DICOM in {name} cannot be decoded: damaged or cut off")
    # What the data say of their colour counts more than the tag, as in pydicom and dcmtk; lossless data keep the tag.
    ybr: bool | None = None
    if marker not in (0xC3, 0xF7):
        ybr = False if names.upper() == b"RGB" else adobe != 0 if adobe is not None else True if jfif else None
    scans = data.count(b"\xff\xda")  # in the data of a scan FF never stands before DA
    return _Stream(width=width, height=height, samples=parts, bits=bits, ybr=ybr, scans=scans)


def _jpeg_2000_header(data: bytes) -> _Stream:
    """Read the size marker of JPEG 2000 data, also if they are wrapped in a JP2 file."""
    start = data.index(b"\xff\x4f\xff\x51", 0, 4096)
    right, bottom, left, top = struct.unpack_from(">IIII", data, start + 8)
    samples, bits = struct.unpack_from(">HB", data, start + 40)
    # Where the colours were transformed, the decoder returns RGB whatever the tag says. Source: ISO/IEC 15444-1 A.6.1.
    transformed = data[data.index(b"\xff\x52", start) + 8] == 1
    return _Stream(
        width=right - left,
        height=bottom - top,
        samples=samples,
        bits=(bits & 0x7F) + 1,
        signed=bool(bits & 0x80),
        ybr=False if transformed else None,
    )
