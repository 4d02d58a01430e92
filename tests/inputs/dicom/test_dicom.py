"""DICOM as it comes: one picture in every way of storing it, and each file that is none with its reason.

The picture has 8 bits and black and white in it; stored in other ways it must come out the same within one level. The
files are drawn here and written by pydicom and imagecodecs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="needs the extra dicom")
pytest.importorskip("imagecodecs", reason="needs the extra dicom")

import pydicom
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from tests.inputs.dicom.files import SYNTAXES, compressed, dataset, dicom_file, in_fragments, to_bytes, without_preamble
from xfeat.featurize.errors import ImageError
from xfeat.featurize.images.decode import decode
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


def table(entries: np.ndarray, first: int, bits: int, *, packed: bool = False, order: str = "<") -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries) % 65536, first, bits])
    item.add_new("LUTData", "OW", entries.astype(np.uint8 if packed else f"{order}u2").tobytes())
    return item


def in_words(entries: np.ndarray) -> Dataset:
    item = table(entries, 0, 12)
    item.add_new("LUTData", "US", [int(entry) for entry in entries])
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


def other_header(*, implicit: bool) -> bytes:
    said = pydicom.uid.ExplicitVRLittleEndian if implicit else pydicom.uid.ImplicitVRLittleEndian
    whole = dicom_file(TWELVE, syntax=said)
    start = 144 + int.from_bytes(whole[140:144], "little")
    return whole[:start] + without_preamble(dataset(TWELVE), implicit=implicit)


def big_endian_words() -> bytes:
    picture = dataset(PICTURE)
    picture.add_new("PixelData", "OW", PICTURE.view(np.uint16).byteswap().tobytes())
    return to_bytes(picture, pydicom.uid.ExplicitVRBigEndian)


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
    "two windows, the first without a center": lambda: dicom_file(
        TWELVE, WindowCenter=["", "2048"], WindowWidth=["10", "4096"]
    ),
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
    "VOI table, inverted": lambda: dicom_file(
        ROOT, "MONOCHROME1", VOILUTSequence=sequence(table(curve(12)[-1] - curve(12), 0, 12))
    ),
    "VOI table, big endian": lambda: dicom_file(
        ROOT, syntax=pydicom.uid.ExplicitVRBigEndian, VOILUTSequence=sequence(table(curve(12), 0, 12, order=">"))
    ),
    "VOI table of words": lambda: dicom_file(ROOT, VOILUTSequence=sequence(in_words(curve(12)))),
    "VOI table without entries, and window": lambda: dicom_file(TWELVE, VOILUTSequence=sequence(Dataset()), **FULL),
    "empty VOI sequence": lambda: dicom_file(TWELVE, VOILUTSequence=sequence(), **FULL),
    "VOI table of 65536 entries": lambda: dicom_file(
        WIDE, BitsStored=16, VOILUTSequence=sequence(table(np.arange(65536) // 16, 0, 12))
    ),
    # File headers and transfer syntaxes without compression.
    "implicit": lambda: dicom_file(TWELVE, syntax=pydicom.uid.ImplicitVRLittleEndian),
    "big endian": lambda: dicom_file(TWELVE, syntax=pydicom.uid.ExplicitVRBigEndian),
    "big endian of 8 bits": lambda: dicom_file(PICTURE, syntax=pydicom.uid.ExplicitVRBigEndian),
    "big endian of 8 bits in words": big_endian_words,
    "something behind the pixels": lambda: dicom_file(TWELVE) + bytes(range(256)) * 3,
    "deflated": lambda: dicom_file(TWELVE, syntax=pydicom.uid.DeflatedExplicitVRLittleEndian),
    "no preamble, implicit": lambda: without_preamble(dataset(TWELVE), implicit=True),
    "no preamble, explicit": lambda: without_preamble(dataset(TWELVE), implicit=False),
    "no preamble, big endian": lambda: without_preamble(dataset(TWELVE.byteswap()), implicit=False, big_endian=True),
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
    "pixels in pieces": lambda: in_fragments("jpeg-ls", [TWELVE], 5, "none"),
    "pixels in pieces, with their places": lambda: in_fragments("lossless1", [WIDE // 16, TWELVE], 2, "basic"),
    "pixels in pieces, places unknown": lambda: in_fragments("lossless1", [WIDE // 16, TWELVE], 2, "none"),
    "extended table of places": lambda: in_fragments("jpeg-ls", [WIDE // 16, TWELVE], 1, "extended"),
    "a header that says explicit, tags implicit": lambda: other_header(implicit=True),
    "a header that says implicit, tags explicit": lambda: other_header(implicit=False),
    "rle with a sign": lambda: compressed("rle", [SIGNED]),
    "lossless with a sign": lambda: compressed("lossless1", [UNSIGNED], PixelRepresentation=1),
    "jpeg-ls with a sign": lambda: compressed("jpeg-ls", [UNSIGNED], PixelRepresentation=1),
    "jpeg2000 with a sign": lambda: compressed("jpeg2000", [SIGNED * 16], BitsStored=16),
    "jpeg2000 without the sign of the tag": lambda: compressed(
        "jpeg2000", [UNSIGNED], PixelRepresentation=1
    ),
    "jpeg2000 with a sign that the tag denies": lambda: compressed(
        "jpeg2000", [SIGNED * 16], BitsStored=16, PixelRepresentation=0
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
        ("progressive", PICTURE, 6),
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
    "32 bits": (padded(TWELVE.astype(np.int32), -20000), {"PixelPaddingValue": -32768, "PixelPaddingRangeLimit": -1}),
}


@pytest.mark.parametrize("where", PADDED)
@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_padding_is_black_and_takes_no_part_in_the_range(where: str, photometric: str) -> None:
    values, tags = PADDED[where]
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
