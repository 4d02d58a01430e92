"""Which JPEG files another decoder may take, and that what torch makes of them is what Pillow makes of them."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from xfeat.featurize.errors import DeviceError
from xfeat.featurize.images.jpeg_header import PlainJpeg, plain_jpeg
from xfeat.featurize.images.nvjpeg import JpegDecoder
from xfeat.featurize.images.pillow_resize import resize_as_pillow
from xfeat.featurize.images.preprocess import load_pixels
from xfeat.featurize.specs import PreprocessSpec

SPEC = PreprocessSpec(size=32)

PLAIN: dict[str, tuple[int, dict[str, Any]]] = {
    "4:2:0": (3, {"subsampling": "4:2:0", "quality": 80}),
    "4:2:2": (3, {"subsampling": "4:2:2"}),
    "4:4:4": (3, {"subsampling": "4:4:4", "quality": 95}),
    "grey": (1, {}),
    "progressive": (3, {"progressive": True}),
    "progressive grey": (1, {"progressive": True}),
    "restart markers": (3, {"restart_marker_rows": 1}),
}


def jpeg_of(art: SimpleNamespace, kind: str, width: int = 61, height: int = 47) -> bytes:
    channels, options = PLAIN[kind]
    content: bytes = art.encoded(art.pixels_of(5, width, height, channels), "JPEG", **options)
    return content


def taken(content: bytes) -> PlainJpeg:
    found = plain_jpeg(content)
    assert found is not None
    return found


@pytest.fixture
def decoder() -> JpegDecoder:
    return JpegDecoder("cpu")


@pytest.mark.parametrize(
    ("height", "width", "side"),
    [
        (47, 61, 32),
        (1, 1, 32),
        (1, 500, 32),
        (500, 1, 32),
        (32, 32, 32),
        (32, 90, 32),
        (90, 32, 32),
        (20, 25, 64),
        (200, 100, 64),
        (301, 77, 64),
        (77, 301, 64),
        (640, 613, 224),
        (1500, 900, 97),
    ],
)
def test_the_resize_in_torch_gives_every_bit_of_pillow(height: int, width: int, side: int) -> None:
    """Noise, where every weight counts; tall ones are those whose height Pillow takes first."""
    noise = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(noise).resize((side, side), Image.Resampling.BILINEAR))
    found = resize_as_pillow(torch.from_numpy(noise).permute(2, 0, 1), side)
    assert (found.dtype, found.shape) == (torch.uint8, (3, side, side))
    assert np.array_equal(found.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("kind", PLAIN)
def test_a_plain_file_is_taken_and_gives_pillows_pixels(art: SimpleNamespace, decoder: JpegDecoder, kind: str) -> None:
    """Pillow's wheels and torchvision's bring the same decoder, libjpeg-turbo; nvJPEG is another."""
    content = jpeg_of(art, kind)
    file = taken(content)
    assert (file.width, file.height, file.grey) == (61, 47, "grey" in kind)
    (pixels,) = decoder.decode([file], SPEC.size)
    assert pixels is not None
    assert np.array_equal(pixels, load_pixels(content, SPEC))


def turned(art: SimpleNamespace) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    content: bytes = art.encoded(art.pixels_of(1), "JPEG", exif=exif)
    return content


def with_upright_exif(art: SimpleNamespace) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 1
    content: bytes = art.encoded(art.pixels_of(1), "JPEG", exif=exif)
    return content


def of_12_bits(art: SimpleNamespace) -> bytes:
    content = bytearray(jpeg_of(art, "grey"))
    content[content.index(b"\xff\xc0") + 4] = 12
    return bytes(content)


def several_pictures(art: SimpleNamespace) -> bytes:
    file, (first, second) = io.BytesIO(), (Image.fromarray(art.pixels_of(seed, 30, 20, 3)) for seed in (1, 2))
    first.save(file, "MPO", save_all=True, append_images=[second])
    return file.getvalue()


LEFT_TO_PILLOW: dict[str, Callable[[SimpleNamespace], bytes]] = {
    "turned by EXIF data": turned,
    "cut short": lambda art: jpeg_of(art, "4:2:0")[:-60],
    "CMYK": lambda art: art.encoded(Image.fromarray(art.pixels_of(1, channels=3)).convert("CMYK"), "JPEG"),
    "RGB without luminance": lambda art: art.encoded(art.pixels_of(1, channels=3), "JPEG", keep_rgb=True),
    "12 bits": of_12_bits,
    "several pictures": several_pictures,
    "PNG": lambda art: art.encoded(art.pixels_of(1)),
    "no size": lambda _: b"\xff\xd8" + b"\xff\xe0" + struct.pack(">H", 16) + bytes(14) + b"\xff\xd9",
    "two bytes": lambda _: b"\xff\xd8",
    "nothing": lambda _: b"",
}


@pytest.mark.parametrize("kind", LEFT_TO_PILLOW)
def test_anything_special_is_left_to_pillow(art: SimpleNamespace, kind: str) -> None:
    assert plain_jpeg(LEFT_TO_PILLOW[kind](art)) is None


def test_upright_exif_data_are_nothing_special(art: SimpleNamespace) -> None:
    assert plain_jpeg(with_upright_exif(art)) is not None


def test_too_many_pixels_are_left_to_pillow_which_refuses_them(art: SimpleNamespace) -> None:
    content = jpeg_of(art, "4:2:0")
    assert plain_jpeg(content, max_pixels=61 * 47) is not None
    assert plain_jpeg(content, max_pixels=61 * 47 - 1) is None


def test_files_of_all_kinds_and_sizes_are_decoded_together_in_order(art: SimpleNamespace, decoder: JpegDecoder) -> None:
    contents = [jpeg_of(art, kind, 40 + number, 70 - number) for number, kind in enumerate(PLAIN)]
    found = decoder.decode([taken(content) for content in contents], SPEC.size)
    for content, pixels in zip(contents, found, strict=True):
        assert pixels is not None
        assert np.array_equal(pixels, load_pixels(content, SPEC))


def test_a_file_that_is_refused_costs_no_other(art: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its tables a file has a good header and no pixels. In one batch, and in batches of one."""
    decoder = JpegDecoder("cpu")
    content = jpeg_of(art, "4:2:0")
    broken = content.replace(b"\xff\xdb", b"\xff\xe9")  # the tables become a part that no decoder reads
    files = [taken(content), taken(broken), taken(content)]
    for most in (64_000_000, 1):
        monkeypatch.setattr("xfeat.featurize.images.nvjpeg._BATCH_PIXELS", most)
        found = decoder.decode(files, SPEC.size)
        assert [pixels is None for pixels in found] == [False, True, False]


def test_a_torchvision_that_cannot_decode_is_an_error_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_nvjpeg(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("decode_jpegs_cuda: torchvision not compiled with nvJPEG support\nException raised from")

    monkeypatch.setattr("torchvision.io.decode_jpeg", without_nvjpeg)
    with pytest.raises(DeviceError, match=r"cannot decode JPEG files on cpu(.|\n)*not compiled(.|\n)*--decoder pillow"):
        JpegDecoder("cpu")


@pytest.mark.gpu
def test_nvjpeg_takes_all_plain_kinds_and_stays_near_pillow(art: SimpleNamespace) -> None:
    if not torch.cuda.is_available():
        pytest.skip("nvJPEG needs a CUDA device")
    decoder = JpegDecoder("cuda:0")
    contents = [jpeg_of(art, kind, 400 + number, 300) for number, kind in enumerate(PLAIN)]
    found = decoder.decode([taken(content) for content in contents], 224)
    for content, pixels in zip(contents, found, strict=True):
        assert pixels is not None
        expected = load_pixels(content, PreprocessSpec(size=224))
        assert np.abs(pixels.astype(int) - expected).max() <= 8
    noise = np.random.default_rng(0).integers(0, 256, (3, 900, 700), dtype=np.uint8)
    assert torch.equal(
        resize_as_pillow(torch.from_numpy(noise).cuda(), 224).cpu(), resize_as_pillow(torch.from_numpy(noise), 224)
    )
