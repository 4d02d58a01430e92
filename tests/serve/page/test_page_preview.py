"""Previews of images that a browser cannot show: DICOM, TIFF."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from xfeat.featurize.errors import ImageError
from xfeat.featurize.specs import PreprocessSpec
from xfeat.serve.http.preview import SIDE, draw_preview


def grey_steps(size=(48, 40)):
    """Return a picture whose grey grows from left to right, 8 bits."""
    return Image.fromarray(np.tile(np.linspace(0, 255, size[0]).astype(np.uint8), (size[1], 1)))


def as_dicom(picture):
    """Return a DICOM file with 12 bits, MONOCHROME1: its white is the smallest value."""
    dataset = pytest.importorskip("pydicom.dataset", reason="needs pydicom, of the extra dicom")
    uid = pytest.importorskip("pydicom.uid")
    levels = np.asarray(picture).astype(np.uint16) * 16
    meta = dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = uid.DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = uid.generate_uid()
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    file = dataset.FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    file.Rows, file.Columns = levels.shape
    file.SamplesPerPixel, file.PixelRepresentation = 1, 0
    file.BitsAllocated, file.BitsStored, file.HighBit = 16, 12, 11
    file.PhotometricInterpretation = "MONOCHROME1"
    file.PixelData = (4080 - levels).tobytes()
    file["PixelData"].VR = "OW"
    content = io.BytesIO()
    file.save_as(content, enforce_file_format=True)
    return content.getvalue()


def as_file(picture, kind):
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


def pixels_of(content):
    return np.asarray(Image.open(io.BytesIO(content), formats=["PNG"]))


def test_dicom_and_tiff_come_back_as_png(client):
    for content in (as_dicom(grey_steps()), as_file(grey_steps(), "TIFF")):
        answer = client.post("/preview", content=content)
        assert answer.headers["content-type"] == "image/png"
        np.testing.assert_array_equal(pixels_of(answer.content), np.asarray(grey_steps()))


def test_16_bit_images_are_scaled_to_8_bits(client):
    deep = Image.fromarray(np.asarray(grey_steps()).astype(np.uint16) * 257)
    answer = client.post("/preview", content=as_file(deep, "PNG"))
    np.testing.assert_array_equal(pixels_of(answer.content), np.asarray(grey_steps()))


def test_a_preview_has_the_range_of_the_model() -> None:
    deep = np.asarray(grey_steps()).astype(np.uint16) * 4
    shown = draw_preview(as_file(Image.fromarray(deep), "PNG"), PreprocessSpec(grey_bits=10))
    assert np.array_equal(pixels_of(shown), np.asarray(grey_steps()))


def test_a_preview_for_a_model_that_is_not_there_is_not_found(client):
    answer = client.post("/preview?model=none", content=as_file(grey_steps(), "TIFF"))
    assert answer.status_code == 404


def test_a_preview_keeps_the_aspect_ratio_and_has_the_size_of_a_screen(client):
    answer = client.post("/preview", content=as_file(grey_steps((2 * SIDE, SIDE)), "TIFF"))
    assert pixels_of(answer.content).shape == (SIDE // 2, SIDE)


@pytest.mark.parametrize("content", [b"", b"text", bytes(128) + b"DICM" + bytes(64), b"II*\0" + bytes(20)])
def test_a_file_that_is_not_an_image_is_422_with_the_reason(client, content):
    answer = client.post("/preview", content=content)
    assert answer.status_code == 422
    assert answer.json()["error"]


def test_a_decompression_bomb_is_rejected_by_its_header(client):
    bomb = as_file(Image.new("1", (20_000, 20_000)), "PNG")
    answer = client.post("/preview", content=bomb)
    assert answer.status_code == 422
    assert "megapixels" in answer.json()["error"]


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "DICOM"])
def test_damaged_files_give_a_preview_or_a_reason(kind):
    whole = as_dicom(grey_steps()) if kind == "DICOM" else as_file(grey_steps(), kind)
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(200):
        damaged = np.frombuffer(whole, np.uint8).copy()
        places = rng.integers(0, len(damaged), 8)
        damaged[places] = rng.integers(0, 256, 8)
        try:
            outcomes.add(pixels_of(draw_preview(damaged.tobytes(), PreprocessSpec())).ndim > 1)
        except ImageError:
            outcomes.add(False)
    assert outcomes == {True, False}


def test_a_preview_needs_the_key_and_has_the_same_limits_as_other_requests(predictor, serve_model):
    with serve_model(predictor, max_body_bytes=1000, api_key="right") as client:
        assert client.post("/preview", content=b"x").status_code == 401
        known = {"X-API-Key": "right"}
        assert client.post("/preview", content=bytes(1001), headers=known).status_code == 413
        assert client.post("/preview", content=as_file(grey_steps(), "PNG"), headers=known).status_code == 200


@pytest.mark.slow
def test_the_page_shows_and_classifies_images_that_the_browser_cannot_decode(predictor, serve_model, tmp_path, browse):
    (tmp_path / "chest.dcm").write_bytes(as_dicom(grey_steps()))
    (tmp_path / "scan.tif").write_bytes(as_file(grey_steps(), "TIFF"))
    (tmp_path / "notes.txt").write_text("text")

    async def visit(browser):
        await browser.until("document.querySelector('#formats').innerText.includes('DICOM')")
        await browser.choose(*(tmp_path / name for name in ("chest.dcm", "scan.tif", "notes.txt")))
        await browser.until_status("3 images:")
        await browser.until("document.querySelector('.card:nth-child(3) .thumb').innerText === 'no preview'")
        for number in (1, 2):
            shown = f"document.querySelector('.card:nth-child({number}) .image').naturalWidth"
            await browser.until(f"{shown} === 48")
        decisions = "[...document.querySelectorAll('.decision')].map((each) => each.innerText)"
        chest, scan, notes = await browser.value(decisions)
        assert chest == scan
        assert notes.startswith("No prediction: text, not a JPEG")

    with serve_model(predictor) as client:
        browse(str(client.base_url), visit)


def test_a_server_without_pydicom_does_not_list_dicom(client, monkeypatch):
    assert "DICOM" in client.get("/model").json()["formats"]
    monkeypatch.setattr("xfeat.serve.inference.description.find_spec", lambda name: None)
    assert client.get("/model").json()["formats"] == [
        "JPEG",
        "PNG",
        "BMP",
        "TIFF",
        "WebP",
        "GIF",
        "JPEG 2000",
        "PNM",
        "AVIF",
    ]
