"""Which files are images: by their suffix, and without one by their first bytes."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xfeat.featurize.datasets.layouts import open_dataset
from xfeat.featurize.datasets.unlabelled import list_images
from xfeat.featurize.images.file_kinds import describe_kind, image_kind

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
KINDS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000", "PPM", "AVIF")
SUFFIXES = """jpg JPEG jpe jfif png apng bmp dib tif tiff webp gif jp2 jpg2 j2k j2c jpf jpx avif pgm ppm pbm pnm mpo
heic HEIF dcm ima"""
DICOM = bytes(128) + b"DICM" + bytes(40)


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(GREY).convert("RGB" if kind in ("AVIF", "WEBP") else "L").save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(
    "suffix",
    SUFFIXES.split(),
)
def test_these_suffixes_are_images(tmp_path: Path, suffix: str) -> None:
    name = f"a.{suffix}"
    (tmp_path / name).write_bytes(b"only names count here")
    assert list_images([tmp_path]) == [tmp_path / name]


@pytest.mark.parametrize("name", ["IM000001", "1.2.840.113619.2.5", "00000001", "scan.", "a b"])
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("kind", [*KINDS, "DICOM"])
def test_without_a_suffix_the_first_bytes_decide(tmp_path: Path, name: str, packed: bool, kind: str) -> None:
    content = DICOM if kind == "DICOM" else encoded(kind)
    data = tmp_path / "data.zip"
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"covid/{name}", content)
        archive.writestr("covid/README", "BM is no bitmap, P1 1 is no picture")
    if not packed:
        zipfile.ZipFile(data).extractall(tmp_path / "folder")
        data = tmp_path / "folder"
        assert list_images([data]) == [data / "covid" / name]
    dataset = open_dataset(data)
    assert [entry.path for entry in dataset.entries] == [f"covid/{name}"]
    assert dataset.left_out["not a known kind of image"]["files"] == 1


@pytest.mark.parametrize("name", ["a.txt", "a.xyz", "a.jpg.part", "a.v2"])
def test_another_suffix_is_taken_at_its_word(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(encoded("PNG"))
    (tmp_path / "b.png").write_bytes(encoded("PNG"))
    assert list_images([tmp_path]) == [tmp_path / "b.png"]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"BMW is a car", ""),
        (b"P5 is not a header", ""),
        (b"GIF pictures", ""),
        (b"", ""),
        (b"\0" * 512, ""),
        (b"\0\0\0\x1cftypheix\0\0\0\0mif1heix", "HEIC"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "AVIF"),
        (b"\0\0\0\x1cftypisom\0\0\0\0isommp41", ""),
        *((encoded(kind), {"WEBP": "WebP", "JPEG2000": "JPEG 2000", "PPM": "PNM"}.get(kind, kind)) for kind in KINDS),
    ],
)
def test_what_the_first_bytes_say(content: bytes, name: str) -> None:
    assert image_kind(content) == name
    assert image_kind(content[:512]) == name


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"  \n<html>", "HTML page"),
        (b'<?xml version="1.0"?><svg xmlns="">', "SVG"),
        (b'{"error": "not found"}', "JSON"),
        (b"\0\0\0\x1cftypisom\0\0\0\0isommp41", "video"),
        (b"PK\x03\x04", "zip archive"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"8BPS\0\1", "Photoshop"),
        (b"MM\0+\0\x08\0\0", "BigTIFF with big-endian numbers"),
        (b"\x5c\x01\0\0" + bytes(340) + b"n+1\0", "NIfTI"),
        (b"\x80\x81\x82", "unknown kind of file"),
    ],
)
def test_what_is_no_image_is_named(content: bytes, name: str) -> None:
    assert name in describe_kind(content)
