"""Writes DICOM files for tests: any pixels, tags and compression."""

from __future__ import annotations

import io
from typing import Any

import imagecodecs
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.filewriter import write_dataset
from pydicom.uid import (
    JPEG2000,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

PLAIN = pydicom.uid.ExplicitVRLittleEndian


def dataset(values: np.ndarray, photometric: str = "MONOCHROME2", **tags: Any) -> Dataset:
    """Return an image with these pixels, frames first and colour last; 12 bits are stored of 16, without more tags."""
    colour = photometric in ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")
    picture = Dataset()
    meta = picture.file_meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = PLAIN, SecondaryCaptureImageStorage
    picture.SOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = picture.SOPInstanceUID = generate_uid()
    picture.Rows, picture.Columns = values.shape[-3:-1] if colour else values.shape[-2:]
    picture.SamplesPerPixel, picture.PhotometricInterpretation = (3 if colour else 1), photometric
    if colour:
        picture.PlanarConfiguration = 0
    bits = values.dtype.itemsize * 8
    picture.BitsAllocated = bits
    if values.dtype.kind == "f":
        setattr(picture, "FloatPixelData" if bits == 32 else "DoubleFloatPixelData", values.tobytes())
    else:
        picture.BitsStored = tags.get("BitsStored") or (12 if bits == 16 else bits)
        picture.HighBit, picture.PixelRepresentation = picture.BitsStored - 1, int(values.dtype.kind == "i")
        picture.add_new("PixelData", "OW" if bits > 8 else "OB", values.tobytes() + bytes(values.nbytes % 2))
    for name, value in tags.items():
        setattr(picture, name, value)
    return picture


def to_bytes(picture: Dataset, syntax: str = PLAIN) -> bytes:
    """Return the file, in one of the transfer syntaxes without compression of pixels."""
    picture.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    file = io.BytesIO()
    picture.save_as(file, enforce_file_format=True)
    return file.getvalue()


def dicom_file(values: np.ndarray, photometric: str = "MONOCHROME2", syntax: str = PLAIN, **tags: Any) -> bytes:
    """Return a DICOM file with these pixels; in ``syntax`` without compression."""
    if syntax == pydicom.uid.ExplicitVRBigEndian:
        values = values.byteswap()
    return to_bytes(dataset(values, photometric, **tags), syntax)


def without_preamble(picture: Dataset, *, implicit: bool, big_endian: bool = False) -> bytes:
    """Return the tags alone, as data sets stored without a file header are."""
    tags = Dataset()
    tags.update(picture)
    file = pydicom.filebase.DicomBytesIO()
    file.is_little_endian, file.is_implicit_VR = not big_endian, implicit
    write_dataset(file, tags)
    return file.getvalue()


def _encoded(values: np.ndarray, kind: str, bits: int) -> bytes:
    if kind == "progressive":
        file = io.BytesIO()
        Image.fromarray(values).save(file, "JPEG", progressive=True, quality=98)
        return file.getvalue()
    if kind in ("baseline", "extended"):
        quality = {"level": 98, "subsampling": "444"} if values.ndim == 3 else {"level": 98}
        return imagecodecs.jpeg8_encode(values, bitspersample=bits, **quality)
    if kind.startswith("lossless"):
        return imagecodecs.jpeg8_encode(values, lossless=True, predictor=int(kind[-1]), bitspersample=bits)
    if kind.startswith("jpeg-ls"):
        return imagecodecs.jpegls_encode(values, level=2 if kind.endswith("near") else 0)
    if kind == "htj2k":
        return imagecodecs.htj2k_encode(values, reversible=True)
    exact = {"reversible": True, "level": 0} if kind == "jpeg2000" else {"level": 60}
    return imagecodecs.jpeg2k_encode(values, codecformat="j2k", bitspersample=bits, mct=values.ndim == 3, **exact)


SYNTAXES = {
    "baseline": JPEGBaseline8Bit,
    "extended": JPEGExtended12Bit,
    "progressive": pydicom.uid.UID("1.2.840.10008.1.2.4.55"),
    "lossless1": JPEGLosslessSV1,
    "lossless6": JPEGLossless,
    "jpeg-ls": JPEGLSLossless,
    "jpeg-ls near": JPEGLSNearLossless,
    "jpeg2000": JPEG2000Lossless,
    "jpeg2000 lossy": JPEG2000,
    "htj2k": HTJ2KLossless,
    "rle": RLELossless,
}


def compressed(kind: str, frames: list[np.ndarray], photometric: str = "MONOCHROME2", **tags: Any) -> bytes:
    """Return a DICOM file with compressed frames (rows, columns[, 3]).

    Args:
        kind: a key of :data:`SYNTAXES`.
        frames: to compress, or encoded already.
        photometric: of the tags.
        tags: further tags.
    """
    picture = dataset(np.stack(frames) if len(frames) > 1 else frames[0], photometric, **tags)
    if len(frames) > 1:
        picture.NumberOfFrames = len(frames)
    if kind == "rle":
        picture.compress(RLELossless)
    else:
        put_streams(picture, kind, [_encoded(frame, kind, picture.BitsStored) for frame in frames])
    file = io.BytesIO()
    picture.save_as(file, enforce_file_format=True)
    return file.getvalue()


def in_fragments(kind: str, frames: list[np.ndarray], fragments: int, table: str) -> bytes:
    """Return compressed frames, each in several pieces, with a table of their places (basic, extended or none)."""
    picture = dataset(np.stack(frames), NumberOfFrames=len(frames))
    streams = [_encoded(frame, kind, picture.BitsStored) for frame in frames]
    put_streams(picture, kind, streams)
    if table == "extended":
        found = encapsulate_extended(streams)
        picture.PixelData, picture.ExtendedOffsetTable, picture.ExtendedOffsetTableLengths = found
    else:
        picture.PixelData = encapsulate(streams, fragments_per_frame=fragments, has_bot=table == "basic")
    return to_bytes(picture, SYNTAXES[kind])


def put_streams(picture: Dataset, kind: str, streams: list[bytes]) -> None:
    """Replace the pixels by compressed ones."""
    picture.file_meta.TransferSyntaxUID = SYNTAXES[kind]
    picture.add_new("PixelData", "OB", encapsulate(streams))
    picture["PixelData"].is_undefined_length = True
