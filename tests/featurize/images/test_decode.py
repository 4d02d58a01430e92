"""Decoding: what is accepted, what is refused with which reason, and which pixels come out."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from xfeat.featurize.errors import ImageError
from xfeat.featurize.images.decode import decode, is_truncated
from xfeat.featurize.images.preprocess import load_pixels, resize
from xfeat.featurize.specs import IMAGENET_MEAN, IMAGENET_STD, PreprocessSpec


def rgb(data: bytes) -> np.ndarray:
    return np.asarray(decode(data).convert("RGB"))


def test_grey_stays_grey(art: SimpleNamespace) -> None:
    assert decode(art.encoded(art.pixels_of(1))).mode == "L"


def test_a_palette_with_transparency_becomes_its_colours(art: SimpleNamespace) -> None:
    image = Image.fromarray(art.pixels_of(1, channels=3)).quantize(16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(art.encoded(image, transparency=bytes(range(16)))).mode == "RGB"


@pytest.mark.parametrize(("kind", "share"), [("JPEG", 2 / 3), ("PNG", 1 / 2)])
def test_a_truncated_file_is_read_as_far_as_it_goes(art: SimpleNamespace, kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200), dtype=np.uint8)
    whole = art.encoded(noise, kind)
    cut = whole[: int(len(whole) * share)]
    assert is_truncated(cut)
    assert not is_truncated(whole)
    got, expected = np.asarray(decode(cut)), np.asarray(decode(whole))
    assert np.array_equal(got[:50], expected[:50])
    assert not np.array_equal(got, expected)


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))


@pytest.mark.parametrize("side", [10_001, 13_000, 60_000, 2**31 - 1])
def test_a_decompression_bomb_is_refused_from_its_header(side: int) -> None:
    with pytest.raises(ImageError, match=r"megapixels|decoded|damaged"):
        decode(png_header(side, side))


def test_the_limit_is_on_pixels(art: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    data = art.encoded(art.pixels_of(1))
    monkeypatch.setattr("xfeat.featurize.images.limits.MAX_PIXELS", 60 * 50)
    assert decode(data).size == (60, 50)
    monkeypatch.setattr("xfeat.featurize.images.limits.MAX_PIXELS", 60 * 50 - 1)
    with pytest.raises(ImageError, match="60×50 is more than"):
        decode(data)


def with_exif(art: SimpleNamespace, kind: str, orientation: int = 6) -> bytes:
    """Return an image file with EXIF data of several types: text, fractions, a nested folder of tags."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = "a chest"  # ImageDescription
    exif[0x011A] = 72.0  # XResolution
    exif.get_ifd(0x8769)[0x829A] = 0.004  # ExposureTime
    return art.encoded(art.pixels_of(1, channels=3), kind, exif=exif)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_is_what_pillow_says(art: SimpleNamespace, kind: str, orientation: int) -> None:
    """The reference is ``ImageOps.exif_transpose``, for each format that carries EXIF data."""
    data = with_exif(art, kind, orientation)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(rgb(data), np.asarray(expected.convert("RGB")))


def exif_of(*entries: tuple[int, int, int, bytes]) -> bytes:
    """Return EXIF data written by hand: (tag, type, count, 4 bytes of value or offset)."""
    tags = b"".join(struct.pack("<HHI", tag, kind, count) + value for tag, kind, count, value in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + tags + bytes(4)


TURNED = (0x0112, 3, 1, struct.pack("<HH", 6, 0))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("exif", "turned"),
    [
        (b"Exif\0\0II", False),
        (b"Exif\0\0XXXXXXXXXXXX", False),
        (exif_of((0x0112, 2, 4, b"six\0")), False),
        (exif_of((0x0112, 5, 1, struct.pack("<I", 9000))), False),
        (exif_of(TURNED, (0x8769, 2, 4, b"abc\0")), True),
        (exif_of(TURNED, (0x011A, 2, 4, b"dpi\0")), True),
    ],
    ids=["cut", "no header", "a text", "beyond the end", "folder is a text", "resolution is a text"],
)
def test_damaged_exif_costs_no_pixel(art: SimpleNamespace, kind: str, exif: bytes, turned: bool) -> None:
    """An orientation that can be read is followed; else pixels stay as they are. The reference is Pillow, without."""
    plain = Image.open(io.BytesIO(art.encoded(art.pixels_of(1, channels=3), kind))).convert("RGB")
    expected = np.rot90(np.asarray(plain), -1) if turned else np.asarray(plain)
    assert np.array_equal(rgb(art.encoded(art.pixels_of(1, channels=3), kind, exif=exif)), expected)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_no_damage_lets_anything_but_an_image_error_out(art: SimpleNamespace, kind: str) -> None:
    """Seeded: single bytes, all of the head where EXIF data and tags are, and cuts."""
    whole = with_exif(art, kind)
    random = np.random.default_rng(0)
    exif_at = max(whole.find(b"II*\0"), whole.find(b"MM\0*"), 0)
    read = 0
    for _ in range(600):
        content = bytearray(whole)
        for _ in range(random.integers(1, 6)):
            near = random.random() < 0.8
            at = (
                int(random.integers(exif_at, min(exif_at + 200, len(content)))) if near else random.integers(len(whole))
            )
            content[at] = random.choice([0, 1, 0x7F, 0xFF, random.integers(256)])
        if random.random() < 0.1:
            content = content[: random.integers(len(content))]
        try:
            pixels = load_pixels(bytes(content), PreprocessSpec(size=32))
        except ImageError:
            continue
        assert pixels.shape == (32, 32, 3)
        assert pixels.dtype == np.uint8
        read += 1
    assert 0 < read < 600


# Preprocessing


@settings(max_examples=20, deadline=None)
@given(width=st.integers(1, 300), height=st.integers(1, 300), size=st.integers(32, 96), grey=st.booleans())
def test_pixels_are_those_of_torchvision(art: SimpleNamespace, width: int, height: int, size: int, grey: bool) -> None:
    """The reference is the tutorial's ``Resize((S, S))`` on the image converted to RGB first."""
    from torchvision.transforms import Resize

    image = Image.fromarray(art.pixels_of(3, width, height, 1 if grey else 3))
    expected = np.asarray(Resize((size, size))(image.convert("RGB")))
    assert np.array_equal(load_pixels(art.encoded(image), PreprocessSpec(size=size)), expected)


@pytest.mark.xray
@pytest.mark.slow
def test_pixels_of_real_x_rays_are_those_of_torchvision() -> None:
    """PNG and JPEG as published, L, RGB and RGBA; the reference is torchvision's loader and ``Resize``."""
    from torchvision.datasets.folder import pil_loader
    from torchvision.transforms import Resize

    folder = Path(__file__).parents[4] / "shared" / "xray-originals"
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    if not files:
        pytest.skip("no X-rays in ../shared/xray-originals")
    for path in files:
        expected = np.asarray(Resize((224, 224))(pil_loader(str(path))))
        assert np.array_equal(load_pixels(path.read_bytes(), PreprocessSpec()), expected), path.name


def test_an_image_of_the_right_size_is_left_alone(art: SimpleNamespace) -> None:
    pixels = art.pixels_of(3, 64, 64, 3)
    assert np.array_equal(resize(Image.fromarray(pixels), PreprocessSpec(size=64)), pixels)


@pytest.mark.parametrize(
    "mean_std", [((0.5,) * 3, (0.5,) * 3), (IMAGENET_MEAN, IMAGENET_STD)], ids=["half", "imagenet"]
)
def test_normalisation_is_that_of_torchvision(art: SimpleNamespace, mean_std: tuple) -> None:
    """The reference is ToTensor and Normalize."""
    import torch
    from torchvision.transforms import Compose, Normalize, ToTensor

    from xfeat.featurize.backbones.network import Normalize as Layer

    mean, std = mean_std
    pixels, spec = art.pixels_of(3, 48, 48, 3), PreprocessSpec(size=48, mean=mean, std=std)
    expected = Compose([ToTensor(), Normalize(mean, std)])(Image.fromarray(pixels)).numpy()
    layer = Layer(spec)(torch.from_numpy(pixels.copy())[None])
    assert np.abs(layer[0].numpy() - expected).max() < 1e-6
    floats = torch.from_numpy(pixels.copy())[None].permute(0, 3, 1, 2).float()
    assert torch.equal(Layer(spec)(floats), layer)


def test_importing_the_decoders_changes_neither_warning_filters_nor_pillows_limit() -> None:
    """Only a command, or a process that decodes, ignores the decoders' warnings."""
    code = """
import warnings, logging, h5py, numpy, pydicom, pydicom.pixels
from PIL import Image
before = list(warnings.filters), Image.MAX_IMAGE_PIXELS, list(logging.getLogger("PIL").handlers)
import xfeat.featurize.images.augmentation, xfeat.featurize.images.dicom.header
xfeat.featurize.images.dicom.header.import_pydicom()
assert before == (list(warnings.filters), Image.MAX_IMAGE_PIXELS, list(logging.getLogger("PIL").handlers))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_command_ignores_warnings_of_pillow_and_no_others() -> None:
    from xfeat.featurize.images.decoder_warnings import ignore_decoder_warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="odd tag"):
            warnings.warn_explicit("odd tag", UserWarning, "Image.py", 1, module="PIL.Image")
        ignore_decoder_warnings()
        warnings.warn_explicit("odd tag", UserWarning, "Image.py", 1, module="PIL.Image")
        with pytest.raises(UserWarning, match="other"):
            warnings.warn_explicit("other", UserWarning, "x.py", 1, module="PILLOWS")


def test_the_pixels_cached_are_the_pixels_served() -> None:
    """Serving and caching share one function; a second implementation would drift."""
    from xfeat.featurize.images import augmentation, preprocess
    from xfeat.serve.inference import predictor

    assert predictor.load_pixels is load_pixels
    assert augmentation.squash is preprocess.squash
    assert augmentation.cut is preprocess.cut
    assert augmentation.decode is decode
