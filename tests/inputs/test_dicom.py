"""DICOM as it comes: one picture in every way of storing it, and each file that is none with its reason.

The picture has 8 bits and black and white in it; stored in other ways it must come out the same within one level. The
files are drawn here and written by pydicom and imagecodecs.
"""

from __future__ import annotations

import io
import struct
import sys
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pydicom", reason="needs the extra dicom")
pytest.importorskip("imagecodecs", reason="needs the extra dicom")

import pydicom
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from tests.inputs.dicom_files import SYNTAXES, compressed, dataset, dicom_file, put_streams, to_bytes, without_preamble
from xfeat.featurize.errors import ImageError
from xfeat.featurize.images.decode import decode
from xfeat.featurize.images.dicom import is_dicom
from xfeat.featurize.images.preprocess import load_pixels
from xfeat.featurize.specs import PreprocessSpec

pytestmark = pytest.mark.filterwarnings("ignore")  # pydicom warns of what is odd in these files, and it is meant to be

ROW, COLUMN = np.mgrid[:24, :32]
PICTURE = np.rint(127.5 + 127.5 * np.sin(COLUMN / 5) * np.cos(ROW / 4)).astype(np.uint8)
PICTURE[0, :2] = 0, 255
TWELVE = np.rint(PICTURE * (4095 / 255)).astype(np.uint16)
SIGNED = TWELVE.astype(np.int16) - 2048
WIDE = np.rint(PICTURE * 257.0).astype(np.uint16)
UNSIGNED = (SIGNED & 0x0FFF).astype(np.uint16)
HALF = (PICTURE > 127).astype(np.uint8)


def padded(values: np.ndarray, padding: int) -> np.ndarray:
    """Return values whose black lower edge is padding."""
    changed = values.copy()
    changed[-3:] = padding
    return changed


def sequence(*items: Dataset) -> Sequence:
    return Sequence(items)


def table(entries: np.ndarray, first: int, bits: int, *, packed: bool = False) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries) % 65536, first, bits])
    item.add_new("LUTData", "OW", entries.astype(np.uint8 if packed else "<u2").tobytes())
    return item


def curve(bits: int) -> np.ndarray:
    """Return 4096 entries that map a square root of the picture back to the picture, in so many bits."""
    return np.rint((np.arange(4096) / 4095) ** 2 * (2**bits - 1))


ROOT = np.rint(np.sqrt(PICTURE / 255) * 4095).astype(np.uint16)
INVERTED_TABLE = np.arange(4096)[::-1]


def grouped(place: str) -> bytes:
    """Return a file of two frames with rescaling and window for each frame, or shared, as enhanced files have them."""
    rescale, window, group = Dataset(), Dataset(), Dataset()
    rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = 2, -100, "US"
    window.WindowCenter, window.WindowWidth = 2 * 2047.5 - 100 + 0.5, 2 * 4095 + 1
    group.PixelValueTransformationSequence, group.FrameVOILUTSequence = sequence(rescale), sequence(window)
    other = Dataset()
    other.FrameVOILUTSequence = sequence(Dataset())
    picture = dataset(np.stack([WIDE // 32, TWELVE]), NumberOfFrames=2)
    if place == "shared":
        picture.SharedFunctionalGroupsSequence = sequence(group)
    else:
        picture.PerFrameFunctionalGroupsSequence = sequence(other, group)
    return to_bytes(picture)


def encapsulated_without_syntax() -> bytes:
    picture = dataset(PICTURE)
    put_streams(picture, "rle", [b"\0" * 64])
    return dicom_without_syntax(picture)


def dicom_without_syntax(picture: Dataset) -> bytes:
    """Return a file whose header lacks the transfer syntax."""
    return bytes(128) + b"DICM" + without_preamble(picture, implicit=False)


FULL = {"WindowCenter": 2048, "WindowWidth": 4096}
GREY = {
    "8 bits": lambda: dicom_file(PICTURE),
    "10 of 16 bits": lambda: dicom_file(TWELVE // 4, BitsStored=10),
    "12 of 16 bits": lambda: dicom_file(TWELVE),
    "16 bits": lambda: dicom_file(WIDE, BitsStored=16),
    "12 bits in a file that says 16": lambda: dicom_file(TWELVE, BitsStored=16),
    "12 bits with a sign": lambda: dicom_file(SIGNED),
    "16 bits with a sign": lambda: dicom_file(SIGNED * 16, BitsStored=16),
    "8 bits with a sign": lambda: dicom_file((PICTURE.astype(np.int16) - 128).astype(np.int8)),
    "32 bits": lambda: dicom_file(TWELVE.astype(np.uint32) * 100_000),
    "32 bits with a sign": lambda: dicom_file(SIGNED.astype(np.int32) * 100_000),
    "float": lambda: dicom_file(TWELVE.astype(np.float32) / 7),
    "double": lambda: dicom_file(TWELVE.astype(np.float64) * 1e6 - 1e9),
    "high bit 15": lambda: dicom_file(TWELVE << 4, BitsStored=12, HighBit=15),
    "high bit 15 with a sign": lambda: dicom_file((SIGNED << 4).astype(np.int16), BitsStored=12, HighBit=15),
    "impossible high bit": lambda: dicom_file(TWELVE, BitsStored=12, HighBit=7),
    "an overlay in unused bits": lambda: dicom_file(TWELVE | (HALF.astype(np.uint16) << 13)),
    "a sign beside unused bits": lambda: dicom_file((SIGNED & 0x0FFF).astype(np.int16)),
    "inverted": lambda: dicom_file(4095 - TWELVE, "MONOCHROME1"),
    "photometric in small letters": lambda: dicom_file(TWELVE, PhotometricInterpretation="monochrome2"),
    "without bits stored": lambda: dicom_file(TWELVE, BitsStored=None, HighBit=None),
    "without samples per pixel": lambda: dicom_file(TWELVE, SamplesPerPixel=None),
    "odd number of bytes": lambda: dicom_file(np.pad(PICTURE, 1)[1:-1, :-1][:, 1:]),
    # Rescaling and modality tables.
    "rescaled": lambda: dicom_file(TWELVE, RescaleSlope="2.5", RescaleIntercept="-1024"),
    "rescaled downwards": lambda: dicom_file(4095 - TWELVE, RescaleSlope="-1", RescaleIntercept="0"),
    "slope without intercept": lambda: dicom_file(TWELVE, RescaleSlope="-1"),
    "intercept without slope": lambda: dicom_file(TWELVE, RescaleIntercept="-9000", **FULL),
    "empty rescaling": lambda: dicom_file(TWELVE, RescaleSlope="", RescaleIntercept=""),
    "slope 0": lambda: dicom_file(TWELVE, RescaleSlope="0", RescaleIntercept="5"),
    **{
        f"modality table of {bits} bits": lambda bits=bits: dicom_file(
            ROOT, ModalityLUTSequence=sequence(table(curve(bits), 0, bits))
        )
        for bits in (8, 10, 12, 14, 16)
    },
    "modality table for signs": lambda: dicom_file(
        ROOT.astype(np.int16) - 2048, ModalityLUTSequence=sequence(table(curve(12), -2048, 12))
    ),
    "modality table of a falling slope": lambda: dicom_file(
        4095 - TWELVE, ModalityLUTSequence=sequence(table(INVERTED_TABLE, 0, 12))
    ),
    "empty modality sequence": lambda: dicom_file(TWELVE, ModalityLUTSequence=sequence()),
    # Windows.
    "a window of all values": lambda: dicom_file(TWELVE, **FULL),
    "empty window": lambda: dicom_file(TWELVE, WindowCenter="", WindowWidth=""),
    "window without width": lambda: dicom_file(TWELVE, WindowCenter="100"),
    "window of width 0": lambda: dicom_file(TWELVE, WindowCenter="100", WindowWidth="0"),
    "window of negative width": lambda: dicom_file(TWELVE, WindowCenter="100", WindowWidth="-5"),
    "two windows": lambda: dicom_file(TWELVE, WindowCenter=[2048, 100], WindowWidth=[4096, 10]),
    "two windows, the first of width 0": lambda: dicom_file(TWELVE, WindowCenter=[1, 2048], WindowWidth=[0, 4096]),
    "two centers, one width": lambda: dicom_file(TWELVE, WindowCenter=[2048, 1], WindowWidth="4096"),
    "exact window": lambda: dicom_file(
        TWELVE, VOILUTFunction="LINEAR_EXACT", WindowCenter="2047.5", WindowWidth="4095"
    ),
    "empty window function": lambda: dicom_file(TWELVE, VOILUTFunction="", **FULL),
    "window after rescaling": lambda: dicom_file(
        TWELVE, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=2 * 2047.5 - 999.5, WindowWidth=8191
    ),
    "window, inverted": lambda: dicom_file(4095 - TWELVE, "MONOCHROME1", **FULL),
    "window of floats": lambda: dicom_file(TWELVE.astype(np.float32) / 4095, WindowCenter=1.0, WindowWidth=2.0),
    # VOI tables.
    **{
        f"VOI table of {bits} bits": lambda bits=bits: dicom_file(
            ROOT, VOILUTSequence=sequence(table(curve(bits), 0, bits))
        )
        for bits in (8, 10, 12, 16)
    },
    "VOI table in bytes": lambda: dicom_file(
        ROOT, VOILUTSequence=sequence(table(curve(8), 0, 8, packed=True))
    ),
    "VOI table of 8 bits for 8 bits": lambda: dicom_file(
        255 - PICTURE, VOILUTSequence=sequence(table(np.arange(256)[::-1], 0, 8))
    ),
    "VOI table that says too few bits": lambda: dicom_file(
        ROOT, VOILUTSequence=sequence(table(curve(12), 0, 8))
    ),
    "VOI table for signs": lambda: dicom_file(
        ROOT.astype(np.int16) - 2048, VOILUTSequence=sequence(table(curve(12), -2048, 12))
    ),
    "VOI table for signs, first value without one": lambda: dicom_file(
        ROOT.astype(np.int16) - 2048, VOILUTSequence=sequence(table(curve(12), 65536 - 2048, 12))
    ),
    "VOI table and window": lambda: dicom_file(
        ROOT, VOILUTSequence=sequence(table(curve(12), 0, 12)), WindowCenter=1, WindowWidth=2
    ),
    "empty VOI sequence": lambda: dicom_file(TWELVE, VOILUTSequence=sequence(), **FULL),
    "VOI table of 65536 entries": lambda: dicom_file(
        WIDE, BitsStored=16, VOILUTSequence=sequence(table(np.arange(65536) // 16, 0, 12))
    ),
    # File headers and transfer syntaxes without compression.
    "implicit": lambda: dicom_file(TWELVE, syntax=pydicom.uid.ImplicitVRLittleEndian),
    "big endian": lambda: dicom_file(TWELVE, syntax=pydicom.uid.ExplicitVRBigEndian),
    "big endian of 8 bits": lambda: dicom_file(PICTURE, syntax=pydicom.uid.ExplicitVRBigEndian),
    "deflated": lambda: dicom_file(TWELVE, syntax=pydicom.uid.DeflatedExplicitVRLittleEndian),
    "no preamble, implicit": lambda: without_preamble(dataset(TWELVE), implicit=True),
    "no preamble, explicit": lambda: without_preamble(dataset(TWELVE), implicit=False),
    "no preamble but a file header": lambda: dicom_file(TWELVE)[132:],
    "no transfer syntax": lambda: dicom_without_syntax(dataset(TWELVE)),
    # Compression.
    **{
        f"{kind} of {bits} bits": lambda kind=kind, bits=bits: compressed(
            kind, [PICTURE if bits == 8 else TWELVE if bits == 12 else WIDE], BitsStored=bits
        )
        for kind, depths in {
            "rle": (8, 12, 16),
            "lossless1": (8, 12, 16),
            "lossless6": (8, 12, 16),
            "jpeg-ls": (8, 12, 16),
            "jpeg2000": (8, 12, 16),
            "htj2k": (8, 12, 16),
        }.items()
        for bits in depths
    },
    "rle with a sign": lambda: compressed("rle", [SIGNED]),
    "lossless with a sign": lambda: compressed("lossless1", [UNSIGNED], PixelRepresentation=1),
    "jpeg-ls with a sign": lambda: compressed("jpeg-ls", [UNSIGNED], PixelRepresentation=1),
    "jpeg2000 with a sign": lambda: compressed("jpeg2000", [SIGNED * 16], BitsStored=16),
    "jpeg2000 without the sign of the tag": lambda: compressed(
        "jpeg2000", [UNSIGNED], PixelRepresentation=1
    ),
    "lossless, inverted, with a window": lambda: compressed("lossless1", [4095 - TWELVE], "MONOCHROME1", **FULL),
    "enhanced, shared": lambda: grouped("shared"),
    "enhanced, for each frame": lambda: grouped("per frame"),
}  # fmt: skip


def shown(data: bytes, frames: str = "refuse") -> np.ndarray:
    return np.asarray(decode(data, PreprocessSpec(frames=frames))).astype(int)


@pytest.mark.parametrize("way", GREY)
def test_a_grey_picture_comes_out_as_it_is(way: str) -> None:
    found = shown(GREY[way](), "middle")
    assert found.shape == PICTURE.shape
    assert np.abs(found - PICTURE).max() <= 1


@pytest.mark.parametrize(
    ("kind", "pixels", "levels"),
    [
        ("baseline", PICTURE, 6),
        ("extended", TWELVE, 6),
        ("jpeg-ls near", TWELVE, 1),
        ("jpeg-ls near", PICTURE, 3),
        ("jpeg2000 lossy", TWELVE, 4),
    ],
)
def test_lossy_compression_is_near(kind: str, pixels: np.ndarray, levels: int) -> None:
    assert np.abs(shown(compressed(kind, [pixels], **(FULL if pixels is TWELVE else {}))) - PICTURE).max() <= levels


PADDED = {
    "below": ((padded(SIGNED, -32768)), {"BitsStored": 16, "PixelPaddingValue": -32768}),
    "outside of the stored bits": (padded(SIGNED, -32768), {"PixelPaddingValue": -32768}),
    "above, outside of the stored bits": (padded(TWELVE, 0xF000), {"PixelPaddingValue": 0xF000}),
    "above": (padded(TWELVE, 60000), {"BitsStored": 16, "PixelPaddingValue": 60000}),
    "within": (padded(TWELVE, 0), {"PixelPaddingValue": 0}),
    "a range": (padded(TWELVE, 61000), {"BitsStored": 16, "PixelPaddingValue": 65535, "PixelPaddingRangeLimit": 60000}),
    "with a window": (padded(TWELVE, 4095), {"PixelPaddingValue": 4095, **FULL}),
    "after rescaling": (padded(SIGNED, -2048), {"PixelPaddingValue": -2048, "RescaleSlope": 2, "RescaleIntercept": 9}),
    "float": (padded(TWELVE.astype(np.float32), -1e9), {"FloatPixelPaddingValue": -1e9}),
    "not a number": (padded(TWELVE.astype(np.float32), np.nan), {}),
    "infinite": (padded(TWELVE.astype(np.float32), np.inf), {}),
    "32 bits": (padded(TWELVE.astype(np.int32), -(2**31)), {"PixelPaddingValue": -32768, "PixelPaddingRangeLimit": -1}),
}


@pytest.mark.parametrize("where", PADDED)
@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_padding_is_black_and_takes_no_part_in_the_range(where: str, photometric: str) -> None:
    values, tags = PADDED[where]
    if where == "32 bits":
        values = padded(TWELVE.astype(np.int32), -20000)
    found = shown(dicom_file(values, photometric, **tags))
    assert (found[-3:] == 0).all()
    expected = PICTURE[:-3] if photometric == "MONOCHROME2" else 255 - PICTURE[:-3].astype(int)
    assert np.abs(found[:-3] - expected)[TWELVE[:-3] % 4095 > 0].max() <= 1


def test_negative_padding_may_be_written_without_its_sign() -> None:
    picture = dataset(padded(SIGNED, -3000), BitsStored=16)
    picture.add_new("PixelPaddingValue", "US", 65536 - 3000)
    assert np.abs(shown(to_bytes(picture))[:-3] - PICTURE[:-3]).max() <= 1


def test_a_picture_that_is_all_padding_or_one_level_is_black() -> None:
    assert shown(dicom_file(np.full((8, 8), 7, np.uint16))).max() == 0
    assert shown(dicom_file(np.full((8, 8), 7, np.uint16), PixelPaddingValue=7)).max() == 0


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


IN_COLOUR = {
    "RGB": (lambda: dicom_file(COLOUR, "RGB"), 0),
    "RGB by plane": (lambda: by_colour_plane(COLOUR), 0),
    "RGB without a planar configuration": (lambda: dicom_file(COLOUR, "RGB", PlanarConfiguration=None), 0),
    "RGB of 16 bits": (lambda: dicom_file(COLOUR.astype(np.uint16) * 257, "RGB", BitsStored=16), 1),
    "RGB of 12 bits": (lambda: dicom_file(np.rint(COLOUR * (4095 / 255)).astype(np.uint16), "RGB"), 1),
    "RGB, big endian": (lambda: dicom_file(COLOUR, "RGB", syntax=pydicom.uid.ExplicitVRBigEndian), 0),
    "YBR_FULL": (lambda: dicom_file(YBR, "YBR_FULL"), 3),
    "YBR_FULL_422": (halves, 255),
    "RLE": (lambda: compressed("rle", [COLOUR], "RGB"), 0),
    "RLE of 16 bits": (lambda: compressed("rle", [COLOUR.astype(np.uint16) * 257], "RGB", BitsStored=16), 1),
    "RLE in YBR_FULL": (lambda: compressed("rle", [YBR], "YBR_FULL"), 3),
    "JPEG": (lambda: compressed("baseline", [COLOUR], "YBR_FULL_422"), 9),
    "JPEG whose tag says RGB": (lambda: compressed("baseline", [COLOUR], "RGB"), 9),
    "JPEG Lossless": (lambda: compressed("lossless1", [COLOUR], "RGB"), 0),
    "JPEG Lossless in YBR_FULL": (lambda: compressed("lossless1", [YBR], "YBR_FULL"), 3),
    "JPEG-LS": (lambda: compressed("jpeg-ls", [COLOUR], "RGB"), 0),
    "JPEG 2000": (lambda: compressed("jpeg2000", [COLOUR], "YBR_RCT"), 0),
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
    assert np.abs(found - expected).max() <= min(levels, 9)


def test_one_bit_is_black_and_white() -> None:
    picture = dataset(np.packbits(HALF, bitorder="little").reshape(24, 4))
    picture.Columns, picture.BitsAllocated, picture.BitsStored, picture.HighBit = 32, 1, 1, 0
    assert np.array_equal(shown(to_bytes(picture)), HALF * 255)


FRAMES = [PICTURE // 3, PICTURE, PICTURE[::-1], PICTURE // 5]


@pytest.mark.parametrize("kind", ["plain", "rle", "jpeg-ls", "lossless1", "deflated"])
def test_one_of_several_frames_is_read_by_choice(kind: str) -> None:
    """All frames have the same range here, of one tag, so that they differ after decoding."""
    window = {"WindowCenter": 128, "WindowWidth": 256, "NumberOfFrames": 4}
    if kind in SYNTAXES:
        data = compressed(kind, FRAMES, WindowCenter=128, WindowWidth=256)
    else:
        syntax = (
            pydicom.uid.DeflatedExplicitVRLittleEndian if kind == "deflated" else pydicom.uid.ExplicitVRLittleEndian
        )
        data = dicom_file(np.stack(FRAMES), syntax=syntax, **window)
    assert np.array_equal(shown(data, "first"), FRAMES[0])
    assert np.array_equal(shown(data, "middle"), FRAMES[2])
    with pytest.raises(ImageError, match="4 frames, not one picture: xfeat featurize --frames first"):
        decode(data)


@pytest.mark.parametrize("number", [None, "", 0, 1])
def test_one_frame_is_one_whatever_its_tag_says(number: Any) -> None:
    assert np.array_equal(shown(dicom_file(PICTURE, NumberOfFrames=number)), PICTURE)


def test_it_becomes_the_networks_input() -> None:
    assert load_pixels(dicom_file(TWELVE), PreprocessSpec(size=32)).shape == (32, 32, 3)


# ── What is refused ──────────────────────────────────────────────────────────────────────────────────────────────────


def without(*keywords: str) -> bytes:
    picture = dataset(TWELVE)
    for keyword in keywords:
        del picture[keyword]
    return to_bytes(picture)


def of_class(uid: str) -> bytes:
    picture = dataset(TWELVE)
    picture.SOPClassUID = picture.file_meta.MediaStorageSOPClassUID = uid
    if not uid.startswith("1.2.840.10008.5.1.4.1.1.66"):
        del picture.PixelData
    return to_bytes(picture)


def in_syntax(uid: str) -> bytes:
    written = "1.2.840.10008.1.2.4.102"
    picture = dataset(PICTURE)
    put_streams(picture, "rle", [b"\0\0\0\1" * 30])
    return to_bytes(picture, written).replace(written.encode(), uid.encode().ljust(len(written), b"\0"), 1)


def with_stream(kind: str, change: Any, pixels: np.ndarray = TWELVE) -> bytes:
    """Return a compressed file whose stream is changed."""
    picture = pydicom.dcmread(io.BytesIO(compressed(kind, [pixels])))
    put_streams(picture, kind, [change(pydicom.encaps.get_frame(picture.PixelData, 0, number_of_frames=1))])
    return to_bytes(picture, SYNTAXES[kind])


def raw_tag(keyword: str, value: bytes) -> bytes:
    """Return a file with a value that pydicom would not write."""
    return dicom_file(TWELVE, **{keyword: "1234567"}).replace(b"1234567 ", value.ljust(8), 1)


def larger(stream: bytes) -> bytes:
    """Return a JPEG stream whose header claims 60,000 × 60,000 pixels."""
    at = next(stream.index(marker) for marker in (b"\xff\xc3", b"\xff\xf7", b"\xff\xc0") if marker in stream)
    return stream[: at + 5] + struct.pack(">HH", 60000, 60000) + stream[at + 9 :]


REFUSED = {
    "directory": (lambda: of_class("1.2.840.10008.1.3.10"), r"^not an image: DICOMDIR \(index of files\)$"),
    "report": (lambda: of_class("1.2.840.10008.5.1.4.1.1.88.11"), "^not an image: Basic Text SR$"),
    "document": (lambda: of_class("1.2.840.10008.5.1.4.1.1.104.1"), "^not an image: PDF document$"),
    "presentation": (
        lambda: of_class("1.2.840.10008.5.1.4.1.1.11.1"),
        "^not an image: Grayscale Softcopy Presentation State$",
    ),
    "curve": (lambda: of_class("1.2.840.10008.5.1.4.1.1.9.1.1"), "^not an image: 12-lead ECG Waveform$"),
    "key images": (lambda: of_class("1.2.840.10008.5.1.4.1.1.88.59"), "not an image: Key Object Selection Document"),
    "plan": (lambda: of_class("1.2.840.10008.5.1.4.1.1.481.5"), "^not an image: RT Plan$"),
    "segmentation": (lambda: of_class("1.2.840.10008.5.1.4.1.1.66.4"), "^not an image: segmentation$"),
    "no pixels": (lambda: without("PixelData"), "without an image: it has no pixel data, or is cut off"),
    "no rows": (lambda: without("Rows"), "without the tag Rows"),
    "no bits": (lambda: without("BitsAllocated"), "without the tag BitsAllocated"),
    "no sign": (lambda: without("PixelRepresentation"), "without the tag PixelRepresentation"),
    "no photometric": (lambda: without("PhotometricInterpretation"), "without the tag PhotometricInterpretation"),
    "0 rows": (lambda: dicom_file(TWELVE, Rows=0), "image of 32×0 pixels"),
    "empty rows": (lambda: dicom_file(TWELVE, Rows=None), "without the tag Rows"),
    "CMYK": (lambda: dicom_file(TWELVE, PhotometricInterpretation="CMYK"), "DICOM in CMYK: only MONOCHROME1"),
    "grey of three samples": (lambda: dicom_file(TWELVE, SamplesPerPixel=3), "MONOCHROME2 with 3 samples per pixel"),
    "12 bits allocated": (lambda: dicom_file(TWELVE, BitsAllocated=12), "12 bits stored in 12"),
    "more bits than there are": (lambda: dicom_file(PICTURE, BitsStored=12), "12 bits stored in 8"),
    "colour of 32 bits": (lambda: dicom_file(COLOUR.astype(np.uint32), "RGB"), "RGB with 32 bits"),
    "short": (lambda: to_bytes(dataset(np.tile(TWELVE, (2, 1)), Rows=96)), "cut off: 3072 of 6144 bytes"),
    "cut off in the pixels": (lambda: dicom_file(TWELVE)[:-500], "cut off: 1036 of 1536 bytes"),
    "cut off in the tags": (lambda: dicom_file(TWELVE)[:400], "cut off"),
    "cut off at the start": (lambda: dicom_file(TWELVE)[:140], "DICOM"),
    "only a preamble": (lambda: bytes(128) + b"DICM" + bytes(50), "DICOM"),
    "word for a number": (lambda: raw_tag("WindowCenter", b"normal"), "tag WindowCenter is not a number: normal"),
    "decimal comma": (lambda: raw_tag("RescaleSlope", b"1,5"), "tag RescaleSlope is not a number: 1,5"),
    "not a number": (lambda: raw_tag("RescaleSlope", b"nan"), "tag RescaleSlope is not a finite number: nan"),
    "unknown window": (
        lambda: dicom_file(TWELVE, VOILUTFunction="CUBIC", **FULL),
        "unknown form CUBIC: LINEAR, LINEAR_EXACT and SIGMOID",
    ),
    "table without entries": (
        lambda: dicom_file(TWELVE, VOILUTSequence=sequence(Dataset())),
        "LUTData without entries",
    ),
    "palette without entries": (lambda: dicom_file(PICTURE, "PALETTE COLOR"), "RedPalette.*without entries"),
    "too large": (lambda: dicom_file(TWELVE, Rows=20000, Columns=20000), "20000×20000 is more than 100 megapixels"),
    "MPEG-4": (lambda: in_syntax("1.2.840.10008.1.2.4.102"), r"MPEG-4 AVC/H.264 High Profile.*is not read"),
    "JPEG XL": (lambda: in_syntax("1.2.840.10008.1.2.4.110"), "is not read: dcmdjpeg, gdcmconv"),
    "private": (lambda: in_syntax("1.2.3.4"), r"DICOM in transfer syntax 1\.2\.3\.4 is not read"),
    "compressed, not said": (encapsulated_without_syntax, "compressed pixels whose transfer syntax says"),
    **{
        f"{kind}, cut off": (
            lambda kind=kind: with_stream(kind, lambda stream: stream[: len(stream) // 2 & ~1]),
            f"{name}.*(cut off|damaged)",
        )
        for kind, name in {
            "rle": "RLE Lossless",
            "lossless1": "JPEG Lossless",
            "extended": "JPEG Extended",
            "jpeg-ls": "JPEG-LS Lossless",
            "jpeg2000": "JPEG 2000",
        }.items()
    },
    **{
        f"{kind}, larger than said": (lambda kind=kind: with_stream(kind, larger), "holds 60000×60000 pixels, where")
        for kind in ("lossless1", "jpeg-ls")
    },
    "JPEG with noise": (lambda: with_stream("lossless1", lambda _: b"\xff\xd8" + bytes(60) + b"\xff\xd9"), "damaged"),
    "JPEG 2000 with noise": (lambda: with_stream("jpeg2000", lambda _: bytes(60)), "JPEG 2000.*damaged"),
    "scans without end": (
        lambda: with_stream(
            "baseline", lambda stream: stream[:-2] + b"\xff\xda\0\x08\1\1\0\0\x3f\0" * 300 + b"\xff\xd9", PICTURE
        ),
        "JPEG Baseline.*with 301 scans",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_read_has_its_reason(what: str) -> None:
    write, reason = REFUSED[what]
    with pytest.raises(ImageError, match=reason) as caught:
        decode(write())
    for word in ("literal", "None", "NoneType", "object has", "plugin", "Error"):
        assert word not in caught.value.what
    assert "\n" not in caught.value.what


def deflated(picture: Dataset, zeros: int) -> bytes:
    """Return a deflated file whose pixel data are zeros, that many bytes, without ever holding them."""
    plain = without_preamble(picture, implicit=False)
    head = to_bytes(picture, pydicom.uid.DeflatedExplicitVRLittleEndian)
    start = 144 + int.from_bytes(head[140:144], "little")
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    parts = [packer.compress(plain[:-4] + zeros.to_bytes(4, "little"))]
    parts += [packer.compress(bytes(1 << 20)) for _ in range(zeros >> 20)] + [packer.flush()]
    return head[:start] + b"".join(parts)


def rle_bomb() -> bytes:
    """Return 15 segments in one place, each of which would unpack to 60 MB."""
    picture = dataset(PICTURE)
    header = struct.pack("<16I", 15, *[64] * 15)
    put_streams(picture, "rle", [header + b"\x81\0" * 500_000])
    return to_bytes(picture, SYNTAXES["rle"])


@pytest.mark.parametrize("what", ["deflated more than said", "deflated too large", "deflated frames", "rle"])
def test_a_small_file_never_becomes_a_large_one(what: str) -> None:
    empty = dataset(np.zeros((0, 32), np.uint16))
    empty.Rows, empty.Columns = 24, 32
    if what == "deflated too large":
        empty.Rows = empty.Columns = 60000
    if what == "deflated frames":
        empty.NumberOfFrames = 1_000_000
    data = rle_bomb() if what == "rle" else deflated(empty, 400 << 20)
    tracemalloc.start()
    try:
        if what == "deflated more than said":
            assert shown(data).max() == 0
        else:
            with pytest.raises(ImageError, match=r"megapixels|damaged"):
                decode(data, PreprocessSpec(frames="first"))
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


def test_a_large_image_takes_little_more_memory_than_its_pixels() -> None:
    """Formulas run once for each value, or over parts of the image."""
    data = dicom_file(np.tile(TWELVE, (80, 60)), RescaleSlope=2, RescaleIntercept=1, **FULL)
    tracemalloc.start()
    decode(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * len(data) + (40 << 20)


# ── Which files are DICOM ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP", "JPEG2000"])
def test_other_images_are_not_taken_for_dicom(name: str) -> None:
    file = io.BytesIO()
    Image.fromarray(PICTURE).convert("RGB").save(file, name)
    assert not is_dicom(file.getvalue())


@pytest.mark.parametrize(
    "data",
    [b"", b"\x08\0", b"\x08\0\x05\0", bytes(200), b"\x08\0\x05\0CS" * 40, b"\x02\0\x02\0" * 50, b"\x08\0" * 100],
)
def test_bytes_that_start_alike_are_not_dicom(data: bytes) -> None:
    assert not is_dicom(data)


@pytest.mark.parametrize("way", ["implicit", "no preamble, implicit", "no preamble, explicit", "deflated"])
def test_the_first_bytes_tell_that_it_is_dicom(way: str) -> None:
    assert is_dicom(GREY[way]()[:132])


@pytest.mark.parametrize("package", ["pydicom", "imagecodecs"])
def test_without_the_extra_the_reason_says_what_to_install(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = compressed("lossless1", [TWELVE])
    monkeypatch.setitem(sys.modules, package, None)
    reason = "DICOM files need" if package == "pydicom" else "DICOM in JPEG Lossless needs imagecodecs:"
    with pytest.raises(ImageError, match=rf"^{reason} pip install 'xfeat-onnx\[dicom\]'$"):
        decode(data)


@pytest.mark.parametrize(
    "whole",
    [
        dicom_file(TWELVE[:8, :8]),
        dicom_file(TWELVE[:8, :8], WindowCenter=2000.0, WindowWidth=1000.0, RescaleSlope=1.0, RescaleIntercept=0.0),
        compressed("rle", [TWELVE[:8, :8]]),
        compressed("lossless1", [TWELVE[:8, :8]]),
        compressed("jpeg-ls", [TWELVE[:8, :8]]),
        compressed("jpeg2000", [TWELVE[:8, :8]]),
        without_preamble(dataset(TWELVE[:8, :8]), implicit=True),
    ],
    ids=["plain", "window", "rle", "lossless", "jpeg-ls", "jpeg 2000", "no preamble"],
)
def test_no_damage_lets_anything_but_an_image_error_out(whole: bytes) -> None:
    """Seeded: bytes of the tags and of the compressed pixels."""
    random = np.random.default_rng(0)
    read = 0
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(random.integers(1, 5)):
            content[random.integers(132 if whole[:1] == b"\0" else 0, len(content))] = random.choice([0, 1, 0x7F, 0xFF])
        if random.random() < 0.1:
            content = content[: random.integers(len(content))]
        try:
            decode(bytes(content))
        except ImageError:
            continue
        read += 1
    assert 0 < read < 150
