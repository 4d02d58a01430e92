"""Box and resize of an image, against Pillow's own crop and resize, torchvision's and the box rule written out."""

from __future__ import annotations

import io
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2 as transforms

from tests.inputs.image_bytes import png_16
from xfeat.featurize.images.augmentation import load_views
from xfeat.featurize.images.grey_range import GreyRange
from xfeat.featurize.images.preprocess import cut, load_pixels, resize
from xfeat.featurize.specs import PreprocessSpec

INTERPOLATION = {"bilinear": transforms.InterpolationMode.BILINEAR, "bicubic": transforms.InterpolationMode.BICUBIC}


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC)


def png(image: Image.Image, **more: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **more)
    return file.getvalue()


@pytest.mark.parametrize(
    ("settings", "size", "box"),
    [
        ({}, (640, 480), (0, 0, 640, 480)),
        ({"crop": 0.12}, (640, 480), (77, 58, 563, 422)),  # 76.8 and 57.6
        ({"crop": 0.25}, (10, 10), (3, 3, 7, 7)),  # 2.5, half up
        ({"crop": 0.25}, (6, 6), (2, 2, 4, 4)),
        ({"crop": 0.1}, (101, 99), (10, 10, 91, 89)),
        ({"crop": 0.1}, (4, 4), (0, 0, 4, 4)),
        ({"crop": 0.000001}, (640, 480), (0, 0, 640, 480)),
        ({"crop": 0.49}, (1, 1), (0, 0, 1, 1)),
        ({"crop": 0.49}, (2, 3), (0, 1, 2, 2)),
        ({"crop": 0.49}, (50, 1), (24, 0, 26, 1)),
        ({"crop": 0.499999}, (1000, 7), (499, 3, 501, 4)),
        ({"resize": "crop"}, (640, 480), (80, 0, 560, 480)),
        ({"resize": "crop"}, (480, 641), (0, 80, 480, 560)),
        ({"resize": "crop"}, (1, 900), (0, 449, 1, 450)),
        ({"resize": "crop", "crop": 0.1}, (100, 50), (30, 5, 70, 45)),
    ],
    ids=str,
)
def test_the_box_in_whole_pixels(
    settings: dict[str, object], size: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    assert PreprocessSpec(**settings).box(*size) == box  # type: ignore[arg-type]


@given(
    crop=st.integers(0, 499_999),
    resize=st.sampled_from(["squash", "crop"]),
    width=st.integers(1, 100_000),
    height=st.integers(1, 100_000),
)
def test_the_box_is_inside_centred_not_empty_and_half_a_pixel_from_the_share(
    crop: int, resize: str, width: int, height: int
) -> None:
    left, top, right, bottom = PreprocessSpec(crop=crop / 1e6, resize=resize).box(width, height)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert width - right - left in (0, 1)
    assert height - bottom - top in (0, 1)
    if resize == "crop":
        assert right - left == bottom - top
    else:
        for off, length in ((left, width), (top, height)):
            wished = Fraction(crop, 10**6) * length
            assert abs(off - wished) <= Fraction(1, 2) or off == (length - 1) // 2 < wished


@pytest.mark.parametrize("settings", [{"crop": 0.12}, {"resize": "crop"}, {"crop": 0.03, "resize": "crop"}], ids=str)
@pytest.mark.parametrize("interpolation", INTERPOLATION)
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (90, 200), (224, 224), (401, 300), (5000, 3)])
def test_an_image_is_cut_then_resized(settings: dict[str, object], interpolation: str, size: tuple[int, int]) -> None:
    """Reference: torchvision's crop and resize of the PIL image, which keeps an image that has the size already."""
    spec = PreprocessSpec(interpolation=interpolation, **settings)  # type: ignore[arg-type]
    left, top, right, bottom = spec.box(*size)
    image = noise(*size)
    cropped = transforms.functional.crop(image, top, left, bottom - top, right - left)
    expected = transforms.functional.resize(cropped, [224, 224], INTERPOLATION[interpolation], antialias=True)
    assert (resize(image, spec) == np.asarray(expected)).all()
    assert (load_pixels(png(image), spec) == np.asarray(expected)).all()


@pytest.mark.parametrize("interpolation", INTERPOLATION)
@pytest.mark.parametrize("size", [(640, 480), (480, 640)])
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 0.95, 1.0])
def test_crop_is_what_timm_does_with_its_crop_pct(interpolation: str, size: tuple[int, int], crop_pct: float) -> None:
    """Reference: torchvision's Resize(floor(S / p)) and CenterCrop(S), of which timm's evaluation transform consists.

    They round to whole pixels of the resized image, and their filter reads over the edge of the box.
    """
    spec = PreprocessSpec(interpolation=interpolation, resize="crop", crop=(1 - crop_pct) / 2)
    steps = [transforms.Resize(int(224 / crop_pct), INTERPOLATION[interpolation]), transforms.CenterCrop(224)]
    image = noise(32, 32).resize(size, Image.Resampling.BICUBIC)  # smooth: half a pixel matters little
    expected = np.asarray(transforms.Compose(steps)(image)).astype(int)
    off = np.abs(resize(image, spec) - expected)
    assert off.mean() < np.abs(expected[1:, 1:] - expected[:-1, :-1]).mean(), "as far off as one pixel"
    assert np.abs(resize(image, PreprocessSpec(interpolation=interpolation)) - expected).mean() > 8 * off.mean()


def test_the_box_is_that_of_the_upright_image() -> None:
    """One side of the file lies at the top: what the box leaves must come from the rotated image."""
    image, exif = Image.new("RGB", (100, 40)), Image.Exif()
    image.paste((255, 255, 255), (0, 0, 20, 40))  # the left fifth, which becomes the top one
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif, quality=100)
    assert load_pixels(file.getvalue(), PreprocessSpec(crop=0.19))[0].min() > 0
    assert load_pixels(file.getvalue(), PreprocessSpec(crop=0.25)).max() < 30


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_views_are_made_of_the_box_alone(mode: str) -> None:
    """A white frame that the box cuts off is in no view; rotation fills corners with black."""
    image = Image.new("RGB", (200, 200), "white")
    image.paste((60, 60, 60), (20, 20, 180, 180))
    data = png(image.convert(mode))
    views = load_views(data, PreprocessSpec(size=64, crop=0.1, interpolation="bicubic"), views=9, sha256="7" * 64)
    assert views.max() <= 60 * 1.15 + 1
    assert load_views(data, PreprocessSpec(size=64), views=9, sha256="7" * 64).max() == 255
    assert (views[0] == 60).all()


@pytest.mark.parametrize(
    ("settings", "bits"), [({}, 16), ({"crop": 0.05}, 16), ({"crop": 0.1}, 12), ({"resize": "crop"}, 16)], ids=str
)
def test_white_letters_that_are_cut_off_do_not_count_for_the_range(settings: dict[str, object], bits: int) -> None:
    """Twelve bits and full white in a frame of 10 % at the top and at the bottom, of a wide image."""
    levels = np.random.default_rng(0).integers(0, 4096, (100, 300), dtype=np.uint16)
    levels[:10] = levels[-10:] = 65535
    found = GreyRange.of(png_16(levels), PreprocessSpec(**settings))  # type: ignore[arg-type]
    assert found is not None
    assert found.bits == bits


def test_without_a_box_no_pixel_is_copied() -> None:
    image = noise(50, 40)
    assert cut(image, PreprocessSpec(interpolation="bicubic")) is image


def test_mean_and_std_are_those_of_the_spec() -> None:
    """Reference: torchvision's ToTensor and Normalize."""
    from xfeat.featurize.backbones.network import Normalize

    spec = PreprocessSpec(mean=(0.1, 0.2, 0.3), std=(0.9, 0.5, 1 / 255))
    pixels = resize(noise(300, 200), spec)
    image = torch.tensor(pixels)
    expected = transforms.functional.normalize(image.permute(2, 0, 1) / 255, list(spec.mean), list(spec.std))
    found = Normalize(spec)(image[None])[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
