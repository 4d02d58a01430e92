"""Reads the header of a DICOM file: what its pixels are, and why it is not an image."""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import MutableSequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xfeat.featurize.errors import ImageError
from xfeat.featurize.images.frames import frame_number
from xfeat.featurize.images.limits import MAX_PIXELS, check_size

if TYPE_CHECKING:
    from pydicom import Dataset

GREY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")
PIXEL_DATA = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
# Of the two places that give a frame of an enhanced multi-frame file its own tags.
_FRAME_GROUPS = ("PixelValueTransformationSequence", "FrameVOILUTSequence")
_HEADER_BYTES = 1 << 24
# Source: DICOM PS3.6 annex A. Objects without pixels are named by pydicom; these are said better, or have pixels.
_NOT_IMAGES = {
    "1.2.840.10008.1.3.10": "DICOMDIR (index of files)",
    "1.2.840.10008.5.1.4.1.1.104.1": "PDF document",
    "1.2.840.10008.5.1.4.1.1.66.4": "segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "segmentation",
    "1.2.840.10008.5.1.4.1.1.481.2": "radiotherapy dose",
}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the pixels of a DICOM file are stored; one frame of them is read.

    Args:
        rows: height in pixels.
        columns: width in pixels.
        samples: 1 for grey and palettes, 3 for colour.
        allocated: bits of a sample in the file.
        stored: bits of these that hold the value.
        high: the highest of these bits, counted from 0.
        signed: values are in two's complement.
        photometric: DICOM's photometric interpretation.
        frames: number of frames in the file.
        frame: index of the one to read.
        big_endian: words start with their high byte.
    """

    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    high: int
    signed: bool
    photometric: str
    frames: int
    frame: int
    big_endian: bool

    @property
    def frame_bits(self) -> int:
        """Return the size of a frame that is not compressed."""
        samples = 2 if self.photometric == "YBR_FULL_422" else self.samples
        return self.rows * self.columns * samples * self.allocated


def import_pydicom() -> Any:
    """Return pydicom, or refuse with the name of the extra that has it."""
    try:
        import pydicom
        import pydicom.encaps
        import pydicom.filereader
        import pydicom.pixels
    except ModuleNotFoundError as error:
        raise ImageError("DICOM files need pip install 'xfeat-onnx[dicom]'") from error
    return pydicom


def read_dicom(data: bytes, frames: str) -> tuple[Dataset, Layout]:
    """Read the tags of a DICOM file and check them, before its pixels are touched.

    Args:
        data: content of a DICOM file, with or without preamble and file header.
        frames: ``first`` or ``middle`` of several frames, or ``refuse``.

    Returns:
        The tags, where those of the frame stand with the others and a transfer syntax is always set, and the layout.

    Raises:
        ImageError: if it is no image, is too large, or lacks a tag. Damaged files raise whatever pydicom does.
    """
    pydicom = import_pydicom()
    picture = _read_tags(data, frames)
    if "TransferSyntaxUID" not in picture.file_meta:
        implicit, little = picture.original_encoding
        known = pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian
        picture.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian if implicit else known
    layout = _layout(picture, frames)
    _set_frame_tags(picture, layout.frame)
    return picture, layout


def _read_tags(data: bytes, frames: str) -> Dataset:
    pydicom = import_pydicom()
    file = io.BytesIO(data)
    file.seek(132 if data[128:132] == b"DICM" else 0)
    meta = pydicom.filereader.read_dataset(file, False, True, stop_when=lambda tag, _vr, _length: tag.group != 2)
    if meta.get("TransferSyntaxUID") != pydicom.uid.DeflatedExplicitVRLittleEndian:
        plain: Dataset = pydicom.dcmread(io.BytesIO(data), force=True)
        return plain
    # pydicom would inflate whatever comes out: 1.5 MB of zeros become 1.5 GB.
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    body = stream.decompress(data[file.tell() :], _HEADER_BYTES)
    if rest := stream.unconsumed_tail:
        header = pydicom.filereader.read_dataset(
            io.BytesIO(body), False, True, stop_when=lambda tag, _vr, _length: tag >= 0x7FE00008
        )
        header.file_meta = meta
        header.PixelData = b""
        layout = _layout(header, frames)
        if layout.frames * layout.rows * layout.columns > MAX_PIXELS:
            raise ImageError(f"{layout.frames} deflated frames are more than {MAX_PIXELS // 1_000_000} megapixels")
        body += stream.decompress(rest, layout.frames * layout.frame_bits // 8 + 1)
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    picture: Dataset = pydicom.filereader.read_dataset(io.BytesIO(body), False, True)
    picture.file_meta = meta
    picture.set_original_encoding(False, True)
    return picture


def numbers(picture: Dataset, keyword: str, *, empty: float | None = None) -> list[float]:
    """Return the values of a tag; an empty tag is an absent one.

    Args:
        picture: the tags.
        keyword: DICOM's name of the tag.
        empty: stands for an empty one of several values; left out by default.

    Raises:
        ImageError: if one is not a finite number.
    """
    try:
        value = picture.get(keyword)
        several = value if isinstance(value, MutableSequence) else [value]
        found = [None if one is None or not str(one).strip(" \0") else float(one) for one in several]
    except Exception as error:  # whatever pydicom raises for a value that its type does not allow
        raise ImageError(f"DICOM tag {keyword} is not a number: {_raw_value(picture, keyword)}") from error
    if not all(one is None or math.isfinite(one) for one in found):
        raise ImageError(f"DICOM tag {keyword} is not a finite number: {_raw_value(picture, keyword)}")
    return [one for one in (empty if one is None else one for one in found) if one is not None]


def _raw_value(picture: Dataset, keyword: str) -> str:
    value = getattr(picture.get_item(keyword), "value", None)
    return value[:40].decode("latin-1").strip() if isinstance(value, bytes) else str(value)[:40]


def _integer(picture: Dataset, keyword: str, default: int | None = None) -> int:
    found = numbers(picture, keyword)
    if found:
        return int(found[0])
    if default is None:
        raise ImageError(f"DICOM file without the tag {keyword}, which an image must have")
    return default


def _layout(picture: Dataset, frames: str) -> Layout:
    """Read the tags of the image, and refuse what is none."""
    _refuse_other_objects(picture)
    rows, columns = _integer(picture, "Rows"), _integer(picture, "Columns")
    if rows < 1 or columns < 1:
        raise ImageError(f"DICOM image of {columns}×{rows} pixels")
    check_size(columns, rows)
    photometric, samples = _photometric(picture)
    count = max(1, _integer(picture, "NumberOfFrames", 1))
    frame = frame_number(count, "frames", frames)
    floating = any(keyword in picture for keyword in PIXEL_DATA[1:])
    allocated, stored = _bits(picture, photometric, floating=floating)
    if (size := rows * columns * samples * allocated // 8) > 4 * MAX_PIXELS:
        raise ImageError(f"{columns}×{rows} with {samples * allocated} bits per pixel is {size // 1_000_000} MB")
    high = _integer(picture, "HighBit", stored - 1)
    unsigned = floating or allocated == 1 or samples == 3
    return Layout(
        rows=rows,
        columns=columns,
        samples=samples,
        allocated=allocated,
        stored=stored,
        high=high if stored - 1 <= high < allocated else stored - 1,
        # Colour and single bits have no sign, whatever the tag says.
        signed=not unsigned and bool(_integer(picture, "PixelRepresentation")),
        photometric=photometric,
        frames=count,
        frame=frame,
        big_endian=picture.file_meta.get("TransferSyntaxUID") == import_pydicom().uid.ExplicitVRBigEndian,
    )


def _photometric(picture: Dataset) -> tuple[str, int]:
    """Return the photometric interpretation and its samples per pixel."""
    photometric = str(picture.get("PhotometricInterpretation") or "").strip().upper()
    if not photometric:
        raise ImageError("DICOM file without the tag PhotometricInterpretation, which an image must have")
    if photometric not in (*GREY, *COLOUR, "PALETTE COLOR"):
        raise ImageError(f"DICOM in {photometric}: only {', '.join((*GREY, 'PALETTE COLOR', *COLOUR))} are read")
    samples = 3 if photometric in COLOUR else 1
    if (found := _integer(picture, "SamplesPerPixel", samples)) != samples:
        raise ImageError(f"DICOM in {photometric} with {found} samples per pixel, which must be {samples}")
    return photometric, samples


def _bits(picture: Dataset, photometric: str, *, floating: bool) -> tuple[int, int]:
    """Return the bits allocated and stored."""
    allocated = _integer(picture, "BitsAllocated")
    stored = _integer(picture, "BitsStored", allocated)
    if allocated not in (1, 8, 16, 32, 64) or not 1 <= stored <= allocated or (allocated == 64 and not floating):
        raise ImageError(f"DICOM with {stored} bits stored in {allocated}: only 1, 8, 16 and 32 are read")
    if photometric in COLOUR and allocated not in (8, 16):
        raise ImageError(f"DICOM in {photometric} with {allocated} bits: colour is read with 8 and 16 bits")
    return allocated, stored


def _refuse_other_objects(picture: Dataset) -> None:
    kind = str(picture.get("SOPClassUID") or picture.file_meta.get("MediaStorageSOPClassUID") or "")
    if kind in _NOT_IMAGES:
        raise ImageError(f"not an image: {_NOT_IMAGES[kind]}")
    if not any(keyword in picture for keyword in PIXEL_DATA):
        if "PixelDataProviderURL" in picture:
            raise ImageError("DICOM file whose pixels are at another address, not in the file")
        name = import_pydicom().uid.UID(kind).name.removesuffix(" Storage")
        if name and name != kind and "Image" not in name and "Capture" not in name:
            raise ImageError(f"not an image: {name}")
        raise ImageError("DICOM file without an image: it has no pixel data, or is cut off")


def _set_frame_tags(picture: Dataset, frame: int) -> None:
    """Copy rescaling and window of a frame of an enhanced file to where other files have them."""
    per_frame = picture.get("PerFrameFunctionalGroupsSequence") or []
    shared = picture.get("SharedFunctionalGroupsSequence") or []
    for group in [*per_frame[frame : frame + 1], *shared[:1]]:
        for name in _FRAME_GROUPS:
            for item in (group.get(name) or [])[:1]:
                for element in item:
                    if picture.get(element.keyword) in (None, ""):
                        picture[element.tag] = element
