"""DICOM against two other readers: pydicom's own lookup functions and decoders, and dcm2pnm of DCMTK."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pydicom", reason="needs the extra dicom")
pytest.importorskip("imagecodecs", reason="needs the extra dicom")

import pydicom
import pydicom.pixels

from tests.inputs.dicom.files import compressed, dicom_file
from tests.inputs.dicom.test_dicom import (
    GREY,
    ROOT,
    SIGNED,
    TWELVE,
    curve,
    sequence,
    shown,
    table,
)
from tests.inputs.dicom.test_dicom_colour import COLOUR, IN_COLOUR
from xfeat.featurize.errors import ImageError
from xfeat.featurize.images.file_kinds import is_dicom

pytestmark = pytest.mark.filterwarnings("ignore")
WINDOWS = [(2048, 1000), (500, 200), (2048, 20000), (-100, 50), (9000, 100), (2048.5, 1), (2000, 1.5), (100, 4096)]


def in_pydicom(data: bytes, *, ends: tuple[float, float]) -> np.ndarray:
    """Return what pydicom's functions make of a grey file, scaled so that ``ends`` are black and white."""
    picture = pydicom.dcmread(io.BytesIO(data))
    values = pydicom.pixels.apply_modality_lut(picture.pixel_array, picture)
    values = pydicom.pixels.apply_voi_lut(values, picture)
    found = np.clip((values.astype(float) - ends[0]) / (ends[1] - ends[0]), 0, 1)
    return 255 * (1 - found if picture.PhotometricInterpretation == "MONOCHROME1" else found)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("center", "width"), WINDOWS)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_windows_as_in_pydicom(function: str, center: float, width: float, photometric: str) -> None:
    data = dicom_file(TWELVE, photometric, VOILUTFunction=function, WindowCenter=center, WindowWidth=width)
    assert np.abs(shown(data) - in_pydicom(data, ends=(0, 4095))).max() <= 1


@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (2.5, -1024), (-1.0, 100.0), (0.001, 3)])
@pytest.mark.parametrize("values", [TWELVE, SIGNED])
def test_rescaling_as_in_pydicom(values: np.ndarray, slope: float, intercept: float) -> None:
    data = dicom_file(values, RescaleSlope=slope, RescaleIntercept=intercept)
    rescaled = values.astype(float) * slope + intercept
    assert np.abs(shown(data) - in_pydicom(data, ends=(rescaled.min(), rescaled.max()))).max() <= 1


@pytest.mark.parametrize(("values", "first"), [(ROOT, 0), (ROOT, 500), (ROOT.astype(np.int16) - 2048, -2048)])
@pytest.mark.parametrize("keyword", ["VOILUTSequence", "ModalityLUTSequence"])
def test_tables_as_in_pydicom(values: np.ndarray, first: int, keyword: str) -> None:
    data = dicom_file(values, **{keyword: sequence(table(curve(16), first, 16))})
    found = pydicom.pixels.apply_voi_lut if keyword == "VOILUTSequence" else pydicom.pixels.apply_modality_lut
    picture = pydicom.dcmread(io.BytesIO(data))
    entries = found(picture.pixel_array, picture).astype(float)
    ends = (0.0, 65535.0) if keyword == "VOILUTSequence" else (entries.min(), entries.max())
    assert np.abs(shown(data) - (entries - ends[0]) / (ends[1] - ends[0]) * 255).max() <= 1


@pytest.mark.parametrize("way", ["RGB", "RGB by plane", "YBR_FULL", "YBR_FULL_422", "RLE", "RLE in YBR_FULL"])
def test_colour_as_in_pydicom(way: str) -> None:
    data = IN_COLOUR[way][0]()
    assert np.abs(shown(data) - pydicom.dcmread(io.BytesIO(data)).pixel_array).max() <= 1


@pytest.mark.parametrize("kind", ["baseline", "jpeg2000"])
@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL_422"])
def test_compressed_colour_as_in_pydicom(kind: str, photometric: str) -> None:
    data = compressed(kind, [COLOUR], "YBR_RCT" if kind == "jpeg2000" else photometric)
    assert np.abs(shown(data) - pydicom.dcmread(io.BytesIO(data)).pixel_array).max() <= 2


def in_dcmtk(data: bytes, folder: Path, *options: str, program: str = "dcm2pnm") -> np.ndarray:
    """Return what a program of DCMTK writes, as integers."""
    source, target = folder / "one.dcm", folder / "one.bmp"
    source.write_bytes(data)
    subprocess.run([program, "-q", "+Mc", "+ob", *options, str(source), str(target)], check=True)
    return np.asarray(Image.open(target).convert("RGB")).astype(int)


with_dcmtk = pytest.mark.skipif(shutil.which("dcm2pnm") is None, reason="needs dcm2pnm: apt-get install dcmtk")
# DCMTK refuses these; windows in the groups of enhanced files are none for it.
REFUSED_THERE = {"float", "double", "window of floats", "impossible high bit", "without bits stored"}
REFUSED_THERE |= {"RGB without a planar configuration", "palette in segments", "something behind the pixels"}
REFUSED_THERE |= {way for way in GREY if way.startswith("a header that says")}
IN_JPEG = {"lossless1": "dcmj2pnm", "lossless6": "dcmj2pnm", "lossless": "dcmj2pnm", "jpeg-ls": "dcml2pnm"}


def program_for(way: str) -> str:
    return IN_JPEG.get(way.split(" ")[0].strip(","), "dcm2pnm")


@pytest.mark.slow
@with_dcmtk
@pytest.mark.parametrize(
    "way", [way for way in GREY if not any(word in way for word in ("2000", "j2k", "enhanced", "places", "pieces"))]
)
def test_grey_as_in_dcmtk(way: str, tmp_path: Path) -> None:
    """It is told to use the window, the table or the range of the picture; what to use is the test's, above."""
    if way in REFUSED_THERE:
        with pytest.raises(subprocess.CalledProcessError):
            in_dcmtk(GREY[way](), tmp_path)
        return
    own_range = "window" not in way or any(word in way for word in ("width 0", "negative", "empty window", "without"))
    voi = ["+Wl", "1"] if "VOI table" in way else ["+Wm"] if own_range else ["+Wi", "1"]
    voi += ["+Mv"] if "too few bits" in way else []
    found = in_dcmtk(GREY[way](), tmp_path, *voi, program=program_for(way))
    assert np.abs(found[..., 0] - shown(GREY[way](), "middle")).max() <= 1


@pytest.mark.slow
@with_dcmtk
@pytest.mark.parametrize("function", ["LINEAR", "SIGMOID"])
@pytest.mark.parametrize(("center", "width"), WINDOWS)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_windows_as_in_dcmtk(function: str, center: float, width: float, photometric: str, tmp_path: Path) -> None:
    data = dicom_file(TWELVE, photometric, VOILUTFunction=function, WindowCenter=center, WindowWidth=width)
    assert np.abs(shown(data) - in_dcmtk(data, tmp_path, "+Wi", "1")[..., 0]).max() <= 1


@pytest.mark.slow
@with_dcmtk
@pytest.mark.parametrize(
    "way", [way for way in IN_COLOUR if not any(word in way for word in ("2000", "HTJ2K", "says", "leaves"))]
)
def test_colour_as_in_dcmtk(way: str, tmp_path: Path) -> None:
    """Where the tag and the pixels contradict each other, DCMTK believes the tag."""
    data = IN_COLOUR[way][0]()
    if way in REFUSED_THERE:
        with pytest.raises(subprocess.CalledProcessError):
            in_dcmtk(data, tmp_path)
        return
    program = "dcml2pnm" if "JPEG-LS" in way else "dcmj2pnm" if "JPEG" in way else "dcm2pnm"
    assert np.abs(shown(data) - in_dcmtk(data, tmp_path, program=program)).max() <= 2


NOT_READ = {"MR_truncated.dcm", "JPEG2000-embedded-sequence-delimiter.dcm"}  # the latter changes the size
NOT_READ |= {"SC_rgb_rle_32bit.dcm", "SC_rgb_rle_32bit_2frame.dcm"}


def from_scanners() -> list[Path]:
    """Return the files of scanners and viewers that come with pydicom."""
    folder = Path(str(pydicom.__file__)).parent / "data" / "test_files"
    return sorted(path for path in folder.rglob("*") if path.is_file() and is_dicom(path.read_bytes()))


@pytest.mark.slow
@pytest.mark.parametrize("path", from_scanners(), ids=lambda path: path.name)
def test_a_file_from_a_scanner_is_read_as_in_dcmtk_or_refused_with_a_reason(path: Path, tmp_path: Path) -> None:
    picture = pydicom.dcmread(path, force=True)
    name = picture.file_meta.TransferSyntaxUID.name if "TransferSyntaxUID" in picture.file_meta else ""
    kind = picture.SOPClassUID.name if "SOPClassUID" in picture else ""
    if "PixelData" not in picture or "Rows" not in picture or "Dose" in kind or "Segmentation" in kind:
        with pytest.raises(ImageError, match=r"not an image|without an image|without the tag"):
            shown(path.read_bytes(), "first")
        return
    if path.name in NOT_READ:
        with pytest.raises(ImageError, match=r"cut off|where its tags say|with 32 bits"):
            shown(path.read_bytes(), "first")
        return
    found = shown(path.read_bytes(), "first")
    if shutil.which("dcm2pnm") is None or "2000" in name or path.name == "SC_rgb_jpeg.dcm":
        return
    voi = ["+Wl", "1"] if "VOILUTSequence" in picture else ["+Wi", "1"] if picture.get("WindowWidth") else ["+Wm"]
    program = "dcml2pnm" if "JPEG-LS" in name else "dcmj2pnm" if "JPEG" in name else "dcm2pnm"
    expected = in_dcmtk(path.read_bytes(), tmp_path, "-O", *(voi if found.ndim == 2 else []), program=program)
    assert np.abs(found - (expected if found.ndim == 3 else expected[..., 0])).max() <= 2
