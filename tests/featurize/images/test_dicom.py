"""DICOM: what a viewer would show, in 8 bits. Files are made by pydicom."""

from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np
import pytest

from xfeat.featurize.errors import ImageError
from xfeat.featurize.images import dicom
from xfeat.featurize.images.decode import decode
from xfeat.featurize.images.preprocess import load_pixels
from xfeat.featurize.specs import PreprocessSpec

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")

RAMP = np.linspace(0, 4095, 40 * 50).reshape(40, 50).astype(np.uint16)


def dicom_file(values: np.ndarray, photometric: str = "MONOCHROME2", **tags: Any) -> bytes:
    """Return a DICOM file with these pixels, 12 bits stored if there are 16, and more tags."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    picture = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    picture.SOPClassUID, picture.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    colour = values.ndim == 3 and values.shape[-1] == 3
    picture.Rows, picture.Columns = values.shape[-3:-1] if colour else values.shape[-2:]
    picture.SamplesPerPixel, picture.PhotometricInterpretation = (3 if colour else 1), photometric
    if colour:
        picture.PlanarConfiguration = 0
    bits = values.dtype.itemsize * 8
    picture.BitsAllocated, picture.BitsStored = bits, 12 if bits == 16 else bits
    picture.HighBit, picture.PixelRepresentation = picture.BitsStored - 1, 0
    picture.PixelData = values.tobytes()
    for name, value in tags.items():
        setattr(picture, name, value)
    file = io.BytesIO()
    picture.save_as(file, enforce_file_format=True)
    return file.getvalue()


def grey(data: bytes) -> np.ndarray:
    image = decode(data)
    assert image.mode == "L"
    return np.asarray(image).astype(int)


def test_without_a_window_the_whole_range_is_shown() -> None:
    shown = grey(dicom_file(RAMP))
    assert (shown.min(), shown.max()) == (0, 255)
    assert np.abs(shown - RAMP / 4095 * 255).max() <= 0.5 + 1e-6


def test_monochrome1_is_inverted() -> None:
    assert np.array_equal(grey(dicom_file(RAMP, "MONOCHROME1")), 255 - grey(dicom_file(RAMP)))


def windowed(values: np.ndarray, center: float, width: float) -> np.ndarray:
    """Apply the formula of DICOM PS3.3 C.11.2.1.2.1, to 0 to 255."""
    scaled = ((values - (center - 0.5)) / (width - 1) + 0.5) * 255
    scaled = np.where(values <= center - 0.5 - (width - 1) / 2, 0, scaled)
    return np.where(values > center - 0.5 + (width - 1) / 2, 255, scaled)


@pytest.mark.parametrize(("center", "width"), [(2048, 1000), (500, 200), (2048, 20000), (-100, 50), (9000, 100)])
def test_a_window_is_applied(center: float, width: float) -> None:
    """Also one wider than the picture's values, which must come out with little contrast."""
    shown = grey(dicom_file(RAMP, WindowCenter=center, WindowWidth=width))
    assert np.abs(shown - windowed(RAMP.astype(float), center, width)).max() <= 0.5 + 1e-6


def test_the_window_counts_after_the_modality_lut() -> None:
    shown = grey(
        dicom_file(RAMP, RescaleSlope=2, RescaleIntercept=-1000, RescaleType="US", WindowCenter=1000, WindowWidth=3000)
    )
    assert np.abs(shown - windowed(RAMP * 2.0 - 1000, 1000, 3000)).max() <= 0.5 + 1e-6


def test_the_first_of_several_windows_is_taken() -> None:
    shown = grey(dicom_file(RAMP, WindowCenter=[2048, 100], WindowWidth=[1000, 10]))
    assert np.array_equal(shown, grey(dicom_file(RAMP, WindowCenter=2048, WindowWidth=1000)))


def test_a_voi_lut_is_applied() -> None:
    lut = np.sqrt(np.arange(4096) * 4095.0).astype(np.uint16)[::-1]
    table = pydicom.Dataset()
    table.LUTDescriptor = [4096, 0, 12]
    table["LUTData"] = pydicom.DataElement("LUTData", "OW", lut.tobytes())
    table["LUTDescriptor"].VR = "US"
    shown = grey(dicom_file(RAMP, VOILUTSequence=[table]))
    assert np.abs(shown - lut[RAMP] / 4095 * 255).max() <= 0.5 + 1e-6


def test_8_bit_grey_and_colour_come_out_as_they_are() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(grey(dicom_file(values)), values)
    colour = np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(decode(dicom_file(colour, "RGB"))), colour)


def test_a_picture_of_one_grey_level_is_black() -> None:
    assert grey(dicom_file(np.full((8, 8), 7, np.uint16))).max() == 0


def test_it_becomes_the_networks_input() -> None:
    assert load_pixels(dicom_file(RAMP), PreprocessSpec(size=32)).shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lambda: dicom_file(np.stack([RAMP, RAMP]), NumberOfFrames=2), "2 frames: save each frame"),
        (lambda: dicom_file(RAMP)[:1000], "DICOM file cannot be decoded|without an image"),
        (lambda: dicom_file(RAMP)[:140], "DICOM"),
        (lambda: dicom_file(RAMP, "PALETTE COLOR"), "only grey and 8-bit colour"),
        (lambda: bytes(128) + b"DICM" + bytes(50), "DICOM"),
    ],
)
def test_what_is_not_read_has_a_reason(data: Any, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        decode(data())


def test_a_file_without_a_picture_has_a_reason() -> None:
    picture = pydicom.dcmread(io.BytesIO(dicom_file(RAMP)))
    del picture.PixelData
    file = io.BytesIO()
    picture.save_as(file)
    with pytest.raises(ImageError, match="without an image"):
        decode(file.getvalue())


def test_the_size_is_limited_from_the_header() -> None:
    with pytest.raises(ImageError, match=r"50×40 is more than"):
        decode(dicom_file(RAMP), max_pixels=1999)


def test_without_pydicom_the_reason_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    data = dicom_file(RAMP)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    dicom._import_pydicom.cache_clear()
    with pytest.raises(ImageError, match=r"pip install 'xfeat-onnx\[dicom\]'"):
        decode(data)
    monkeypatch.undo()
    dicom._import_pydicom.cache_clear()


def test_an_error_without_words_is_a_reason_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_arguments: object) -> None:
        raise AttributeError

    monkeypatch.setattr(dicom, "_check_header", failing)
    with pytest.raises(ImageError, match="DICOM file cannot be decoded: AttributeError"):
        decode(dicom_file(RAMP))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("window", [{}, {"WindowCenter": 2000.0, "WindowWidth": 1000.0, "RescaleSlope": 1.0}])
def test_no_damage_lets_anything_but_an_image_error_out(window: dict[str, float]) -> None:
    """Seeded: bytes of the header, where the tags are."""
    whole = dicom_file(RAMP[:8, :8], **({**window, "RescaleIntercept": 0.0} if window else {}))
    random = np.random.default_rng(0)
    read = 0
    for _ in range(400):
        content = bytearray(whole)
        for _ in range(random.integers(1, 5)):
            content[random.integers(132, len(content) - 128)] = random.choice([0, 1, 0x7F, 0xFF, random.integers(256)])
        if random.random() < 0.1:
            content = content[: random.integers(len(content))]
        try:
            decode(bytes(content))
        except ImageError:
            continue
        read += 1
    assert 0 < read < 400
