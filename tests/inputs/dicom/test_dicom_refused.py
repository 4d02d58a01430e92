"""DICOM that is no image, cannot be read or would take too much: refused, with the reason. And what DICOM is not."""

from __future__ import annotations

import io
import struct
import sys
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="needs the extra dicom")
pytest.importorskip("imagecodecs", reason="needs the extra dicom")

import pydicom
from pydicom.dataset import Dataset

from tests.inputs.dicom.files import SYNTAXES, compressed, dataset, dicom_file, put_streams, to_bytes, without_preamble
from tests.inputs.dicom.test_dicom import FULL, GREY, PICTURE, TWELVE, dicom_without_syntax, sequence, shown, table
from tests.inputs.dicom.test_dicom_colour import COLOUR, YBR
from xfeat.featurize.datasets.layouts import open_dataset
from xfeat.featurize.errors import ImageError
from xfeat.featurize.images.decode import decode
from xfeat.featurize.images.file_kinds import is_dicom
from xfeat.featurize.specs import PreprocessSpec

pytestmark = pytest.mark.filterwarnings("ignore")


def encapsulated_without_syntax() -> bytes:
    picture = dataset(PICTURE)
    put_streams(picture, "rle", [b"\0" * 64])
    return dicom_without_syntax(picture)


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
    "YBR_RCT without JPEG 2000": (lambda: dicom_file(YBR, "YBR_RCT"), "YBR_RCT, which only JPEG 2000 has"),
    "colour of 32 bits": (lambda: dicom_file(COLOUR.astype(np.uint32), "RGB"), "RGB with 32 bits"),
    "short": (lambda: to_bytes(dataset(np.tile(TWELVE, (2, 1)), Rows=96)), "cut off: 3072 of 6144 bytes"),
    "cut off in the pixels": (lambda: dicom_file(TWELVE)[:-500], "cut off: 1036 of 1536 bytes"),
    "cut off in colours that are whole": (lambda: dicom_file(YBR, "YBR_FULL_422")[:-2], "cut off: 2302 of 2304 bytes"),
    "cut off in the tags": (lambda: dicom_file(TWELVE)[:400], "cut off"),
    "cut off at the start": (lambda: dicom_file(TWELVE)[:140], "DICOM"),
    "only a preamble": (lambda: bytes(128) + b"DICM" + bytes(50), "DICOM"),
    "word for a number": (lambda: raw_tag("WindowCenter", b"normal"), "tag WindowCenter is not a number: normal"),
    "decimal comma": (lambda: raw_tag("RescaleSlope", b"1,5"), "tag RescaleSlope is not a number: 1,5"),
    "not a number": (lambda: raw_tag("RescaleSlope", b"nan"), "tag RescaleSlope is not a finite number: nan"),
    "endless slope": (lambda: dicom_file(TWELVE, RescaleSlope="1e308", RescaleIntercept="0"), "out of range: 1e"),
    "compressed, the end is missing": (lambda: compressed("jpeg-ls", [TWELVE])[:-8], "or is cut off$"),
    "unknown window": (
        lambda: dicom_file(TWELVE, VOILUTFunction="CUBIC", **FULL),
        "unknown form CUBIC: LINEAR, LINEAR_EXACT and SIGMOID",
    ),
    "table without entries": (
        lambda: dicom_file(TWELVE, VOILUTSequence=sequence(table(np.arange(9), 0, 0))),
        "LUTData without entries",
    ),
    "palette without entries": (lambda: dicom_file(PICTURE, "PALETTE COLOR"), "RedPalette.*without entries"),
    "too large": (lambda: dicom_file(TWELVE, Rows=20000, Columns=20000), "20000×20000 is more than 100 megapixels"),
    "too many bytes": (
        lambda: dicom_file(TWELVE.astype(np.float64), Rows=9000, Columns=9000),
        "9000×9000 with 64 bits per pixel is 648 MB",
    ),
    "MPEG-4": (lambda: in_syntax("1.2.840.10008.1.2.4.102"), r"MPEG-4 AVC/H.264 High Profile.*save a frame"),
    "JPEG XL": (
        lambda: in_syntax("1.2.840.10008.1.2.4.110"),
        r"^DICOM in JPEG XL Lossless is not read: save it uncompressed \(gdcmconv --raw\)$",
    ),
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
        f"{kind}, larger than said": (
            lambda kind=kind: with_stream(kind, larger),
            "holds 60000×60000 with 1 samples per pixel, where",
        )
        for kind in ("lossless1", "jpeg-ls")
    },
    "JPEG with noise": (lambda: with_stream("lossless1", lambda _: b"\xff\xd8" + bytes(60) + b"\xff\xd9"), "damaged"),
    "JPEG 2000 with noise": (lambda: with_stream("jpeg2000", lambda _: bytes(60)), "JPEG 2000.*damaged"),
    "scans without end": (
        lambda: with_stream(
            "baseline", lambda stream: stream[:-2] + b"\xff\xda\0\x08\1\1\0\0\x3f\0" * 300 + b"\xff\xd9", PICTURE
        ),
        "JPEG Baseline.*of more than 100 scans",
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


def test_a_folder_from_a_pacs_is_read_without_its_index(tmp_path: Path) -> None:
    """Names end in parts of UIDs, in the modality or in nothing; files may lack the preamble."""
    files = {
        "covid/IM000001": GREY["12 of 16 bits"](),
        "covid/1.2.840.113619.2.5": GREY["no preamble, implicit"](),
        "normal/MR.1.2.3.mr": GREY["lossless1 of 12 bits"](),
        "normal/a.dcm": GREY["no preamble, explicit"](),
        "normal/viewer.exe": b"MZ" + bytes(600),
        "DICOMDIR": of_class("1.2.840.10008.1.3.10"),
        "covid/DICOMDIR": of_class("1.2.840.10008.1.3.10"),
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    dataset = open_dataset(tmp_path)
    assert [entry.path for entry in dataset.entries] == sorted(list(files)[:4])
    assert dataset.left_out["an index of DICOM files"]["files"] == 2
    assert dataset.left_out["not a known kind of image"]["example"] == "normal/viewer.exe"
