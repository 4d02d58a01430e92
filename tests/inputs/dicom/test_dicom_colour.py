"""DICOM in colour: RGB, YCbCr and palettes, in every way of storing them."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pydicom", reason="needs the extra dicom")
pytest.importorskip("imagecodecs", reason="needs the extra dicom")

import imagecodecs
import pydicom

from tests.inputs.dicom.files import SYNTAXES, compressed, dataset, dicom_file, put_streams, to_bytes
from tests.inputs.dicom.test_dicom import PICTURE, shown

pytestmark = pytest.mark.filterwarnings("ignore")

COLOUR = np.stack([PICTURE, 255 - PICTURE, PICTURE // 2 + 60], axis=-1)
YBR = np.asarray(Image.fromarray(COLOUR).convert("YCbCr"))
LEVELS = np.arange(256)


def in_pairs() -> np.ndarray:
    """Return YBR_FULL_422: two of Y, then one of each colour for both, of a picture that has pairs of pixels."""
    paired = np.asarray(Image.fromarray(np.repeat(COLOUR[:, ::2], 2, axis=1)).convert("YCbCr"))
    even, odd = paired[:, ::2], paired[:, 1::2]
    return np.stack([even[..., 0], odd[..., 0], even[..., 1], even[..., 2]], axis=-1).reshape(24, -1)


def halves() -> bytes:
    picture = dataset(np.repeat(COLOUR[:, ::2], 2, axis=1), "YBR_FULL_422")
    picture.PixelData = in_pairs().tobytes()
    return to_bytes(picture)


def palette(index: np.ndarray, bits: int, *, first: int = 0, packed: bool = False, **tags: Any) -> bytes:
    """Return a palette whose entries, from ``first`` on, are the colours of the picture's grey levels."""
    picture = dataset(index, "PALETTE COLOR", **tags)
    for name, levels in (("Red", LEVELS), ("Green", 255 - LEVELS), ("Blue", LEVELS // 2 + 60)):
        entries = (levels * 257 if bits == 16 else levels).astype(np.uint8 if packed else "<u2")
        kind = "SS" if first < 0 else "US"
        picture.add_new(f"{name}PaletteColorLookupTableDescriptor", kind, [256, first, bits])
        picture.add_new(f"{name}PaletteColorLookupTableData", "OW", entries.tobytes())
    return to_bytes(picture)


def in_segments() -> bytes:
    """Return a palette in segments, PS3.3 C.7.9.2: two entries, then a line to the last one."""
    picture = dataset(PICTURE, "PALETTE COLOR")
    for name, first, last in (("Red", 0, 65535), ("Green", 65535, 0), ("Blue", 60 * 257, 187 * 257)):
        segments = [0, 1, first, 1, 255, last]
        picture.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [256, 0, 16])
        picture.add_new(f"Segmented{name}PaletteColorLookupTableData", "OW", struct.pack("<6H", *segments))
    return to_bytes(picture)


def by_colour_plane(values: np.ndarray, **tags: Any) -> bytes:
    return dicom_file(np.moveaxis(values, -1, 0).reshape(values.shape), "RGB", PlanarConfiguration=1, **tags)


def with_bits_allocated() -> bytes:
    """Return 12 bits in JPEG 2000 data that say 16."""
    values = np.rint(COLOUR * (4095 / 255)).astype(np.uint16)
    picture = dataset(values, "RGB")
    put_streams(picture, "jpeg2000", [imagecodecs.jpeg2k_encode(values, level=0, reversible=True, codecformat="j2k")])
    return to_bytes(picture, SYNTAXES["jpeg2000"])


IN_COLOUR = {
    "RGB": (lambda: dicom_file(COLOUR, "RGB"), 0),
    "RGB by plane": (lambda: by_colour_plane(COLOUR), 0),
    "RGB without a planar configuration": (lambda: dicom_file(COLOUR, "RGB", PlanarConfiguration=None), 0),
    "RGB that says it has a sign": (lambda: dicom_file(COLOUR, "RGB", PixelRepresentation=1), 0),
    "RGB of 16 bits": (lambda: dicom_file(COLOUR.astype(np.uint16) * 257, "RGB", BitsStored=16), 1),
    "RGB of 12 bits": (lambda: dicom_file(np.rint(COLOUR * (4095 / 255)).astype(np.uint16), "RGB"), 1),
    "RGB, big endian": (lambda: dicom_file(COLOUR, "RGB", syntax=pydicom.uid.ExplicitVRBigEndian), 0),
    "YBR_FULL": (lambda: dicom_file(YBR, "YBR_FULL"), 3),
    "YBR_FULL_422": (halves, 9),
    "YBR_FULL_422 that leaves out nothing": (lambda: dicom_file(YBR, "YBR_FULL_422"), 3),
    "RLE": (lambda: compressed("rle", [COLOUR], "RGB"), 0),
    "RLE of 16 bits": (lambda: compressed("rle", [COLOUR.astype(np.uint16) * 257], "RGB", BitsStored=16), 1),
    "RLE in YBR_FULL": (lambda: compressed("rle", [YBR], "YBR_FULL"), 3),
    "JPEG": (lambda: compressed("baseline", [COLOUR], "YBR_FULL_422"), 9),
    "JPEG whose tag says RGB": (lambda: compressed("baseline", [COLOUR], "RGB"), 9),
    "JPEG Lossless": (lambda: compressed("lossless1", [COLOUR], "RGB"), 0),
    "JPEG Lossless in YBR_FULL": (lambda: compressed("lossless1", [YBR], "YBR_FULL"), 3),
    "JPEG-LS": (lambda: compressed("jpeg-ls", [COLOUR], "RGB"), 0),
    "JPEG 2000": (lambda: compressed("jpeg2000", [COLOUR], "YBR_RCT"), 0),
    "JPEG 2000 with a wrong tag": (lambda: compressed("jpeg2000", [COLOUR], "YBR_FULL"), 0),
    "JPEG 2000 of 12 bits that says 16": (with_bits_allocated, 1),
    "HTJ2K": (lambda: compressed("htj2k", [COLOUR], "RGB"), 0),
    "palette of 16 bits": (lambda: palette(PICTURE, 16), 0),
    "palette of 8 bits": (lambda: palette(PICTURE, 8), 0),
    "palette of 8 bits in bytes": (lambda: palette(PICTURE, 8, packed=True), 0),
    "palette of 16 bits with values of 8": (lambda: palette(PICTURE, 8, packed=False), 0),
    "palette for 16 bits": (lambda: palette(PICTURE.astype(np.uint16) + 1000, 16, first=1000, BitsStored=16), 0),
    "palette for signs": (lambda: palette(PICTURE.astype(np.int16) - 300, 16, first=-300, BitsStored=16), 0),
    "palette in segments": (in_segments, 1),
}


@pytest.mark.parametrize("way", IN_COLOUR)
def test_a_colour_picture_comes_out_as_it_is(way: str) -> None:
    write, levels = IN_COLOUR[way]
    found = shown(write())
    expected = np.repeat(COLOUR[:, ::2], 2, axis=1) if way == "YBR_FULL_422" else COLOUR
    assert found.shape == COLOUR.shape
    assert np.abs(found - expected).max() <= levels
