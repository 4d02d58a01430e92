"""Images as Python programs have them: each kind gives the pixels of its file, or one error that names it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xfeat.featurize.errors import ArgumentError, ImageError, XfeatError
from xfeat.featurize.images.decode import decode
from xfeat.featurize.images.given import as_images, decode_given, named, range_of_given, read_given
from xfeat.featurize.specs import PreprocessSpec

COLOURS = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
GREY = COLOURS[..., 0]
ALPHA = np.dstack([COLOURS, GREY])
DEEP = GREY.astype(np.uint16) << 4  # 12 bits
SPEC, TWELVE = PreprocessSpec(), PreprocessSpec(grey_bits=12)
EXIF = Image.Exif()
EXIF[0x0112] = 6  # to be turned by 90°


def content(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(image: Any, spec: PreprocessSpec = SPEC) -> np.ndarray[Any, Any]:
    return np.asarray(decode_given(read_given(image, "it"), spec).convert("RGB"))


def of_file(data: bytes, spec: PreprocessSpec = SPEC) -> np.ndarray[Any, Any]:
    return np.asarray(decode(data, spec).convert("RGB"))


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


PALETTE = Image.fromarray(COLOURS).convert("P", palette=Image.Palette.ADAPTIVE)
SAME: dict[str, tuple[Any, bytes]] = {
    "grey": (GREY, content(Image.fromarray(GREY))),
    "grey with an axis": (GREY[..., None], content(Image.fromarray(GREY))),
    "colours": (COLOURS, content(Image.fromarray(COLOURS))),
    "colours of a flipped view": (COLOURS[::-1, ::-1], content(Image.fromarray(COLOURS[::-1, ::-1].copy()))),
    "colours and alpha": (ALPHA, content(Image.fromarray(ALPHA))),
    "grey and alpha": (np.dstack([GREY, GREY]), content(Image.fromarray(np.dstack([GREY, GREY])))),
    "black and white": (GREY > 99, content(Image.fromarray(GREY > 99))),
    "levels 0 to 1": (GREY / 255, content(Image.fromarray(GREY))),
    "colours 0 to 1, float32": ((COLOURS / 255).astype(np.float32), content(Image.fromarray(COLOURS))),
    "a list that is an image of Pillow": (Image.fromarray(COLOURS), content(Image.fromarray(COLOURS))),
    "Pillow, palette": (PALETTE, content(PALETTE)),
    "Pillow, CMYK": (
        Image.fromarray(COLOURS).convert("CMYK"),
        content(Image.fromarray(COLOURS).convert("CMYK"), "TIFF"),
    ),
    "Pillow, one bit": (Image.fromarray(GREY > 99), content(Image.fromarray(GREY > 99))),
    "Pillow, 16 bits": (Image.fromarray(DEEP), content(Image.fromarray(DEEP))),
    "Pillow, not loaded": (opened(content(Image.fromarray(COLOURS))), content(Image.fromarray(COLOURS))),
    "Pillow, EXIF": (
        opened(content(Image.fromarray(COLOURS), "PNG", exif=EXIF)),
        content(Image.fromarray(COLOURS), "PNG", exif=EXIF),
    ),
    "bytearray": (bytearray(content(Image.fromarray(COLOURS))), content(Image.fromarray(COLOURS))),
}


@pytest.mark.parametrize("kind", SAME)
def test_pixels_are_those_of_the_file(kind: str) -> None:
    """Reference: what ``xfeat featurize`` decodes from the same picture as a file."""
    given, file = SAME[kind]
    assert np.array_equal(pixels(given), of_file(file))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("order", ["<", ">"])
def test_levels_of_16_bits_are_those_of_the_range(bits: int, order: str) -> None:
    """Reference: the high 8 of the bits in use."""
    levels = GREY.astype(np.uint16) << (bits - 8)
    spec = PreprocessSpec(grey_bits=bits)
    assert np.array_equal(pixels(levels.astype(f"{order}u2"), spec)[..., 0], GREY)
    assert np.array_equal(pixels(np.dstack([levels] * 3), spec)[..., 1], GREY)
    if bits > 8:
        found = range_of_given(levels, spec)
        assert found is not None
        assert found.bits in (bits, 16)


def test_a_file_of_16_bits_is_the_same_as_path_bytes_pillow_and_array(tmp_path: Path) -> None:
    data = content(Image.fromarray(DEEP))
    (tmp_path / "deep.png").write_bytes(data)
    for given in (tmp_path / "deep.png", str(tmp_path / "deep.png"), data, opened(data), DEEP):
        assert np.array_equal(pixels(given, TWELVE), of_file(data, TWELVE))
        found = range_of_given(read_given(given, "it"), SPEC)
        assert found is not None
        assert found.bits == 12


REFUSED: dict[str, Any] = {
    "int64": GREY.astype(np.int64),
    "int8": GREY.view(np.int8),
    "uint32": GREY.astype(np.uint32),
    "levels to 255 as floats": GREY.astype(np.float32),
    "NaN": np.full((4, 4), np.nan),
    "negative": np.full((4, 4), -0.1),
    "complex": np.zeros((4, 4), complex),
    "objects": np.array([[None]]),
    "channels first": COLOURS.transpose(2, 0, 1),
    "five channels": np.zeros((4, 4, 5), np.uint8),
    "one axis": GREY[0],
    "no pixels": np.zeros((0, 4), np.uint8),
    "masked": np.ma.masked_array(GREY, GREY > 9),
    "too large": np.broadcast_to(np.uint8(0), (20_000, 20_000)),
    "Pillow, 32 bits": Image.fromarray(np.full((4, 4), 1 << 20, np.int32)),
    "Pillow, floats to 255": Image.fromarray(GREY.astype(np.float32)),
    "Pillow, no file any more": None,  # made in the test: it can be used once
    "no such file": "no/such.png",
    "a folder": ".",
    "an address": "https://localhost/a.png",
    "the address of a bucket": "s3://bucket/a.png",
    "text as bytes": b"not an image",
    "empty": b"",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_readable_image_is_one_error(kind: str) -> None:
    given = REFUSED[kind]
    if given is None:
        given = opened(content(Image.fromarray(COLOURS)))
        given.close()
    with pytest.raises(ImageError):
        pixels(given)


@pytest.mark.parametrize(
    "given", [None, 3, float("nan"), {"path": "a.png"}, object(), ["a.png"]], ids=lambda given: type(given).__name__
)
def test_what_is_no_image_is_named(given: Any) -> None:
    with pytest.raises(ArgumentError, match=r"images\[2\]: not an image") as refused:
        read_given(given, named(2, given))
    assert isinstance(refused.value, TypeError)


class Column:
    """As pandas and polars have: an array can be made of it."""

    def __init__(self, values: Any) -> None:
        self.values = np.asarray(values)
        self.shape = self.values.shape

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.values


SEVERAL: dict[str, Callable[[], Any]] = {
    "list": lambda: [GREY, GREY],
    "tuple": lambda: (GREY, GREY),
    "generator": lambda: (image for image in [GREY, GREY]),
    "(N, H, W)": lambda: np.stack([GREY, GREY]),
    "(N, H, W, 3)": lambda: np.stack([COLOURS, COLOURS]),
    "texts": lambda: np.array(["a.png", "b.png"]),
    "texts in one column": lambda: np.array([["a.png"], ["b.png"]], object),
    "a column": lambda: Column(["a.png", "b.png"]),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_images_come_in_lists_arrays_and_columns(kind: str) -> None:
    assert len(as_images(SEVERAL[kind]())) == 2


NOT_SEVERAL = {
    "a path": "a.png",
    "a Path": Path("a.png"),
    "a folder": ".",
    "an address": "https://localhost/a.png",
    "the address of a bucket": "s3://bucket/a.png",
    "bytes": b"x",
    "an image of Pillow": Image.new("L", (4, 4)),
    "(H, W)": GREY,
    "(H, W, 3)": COLOURS,
    "features": np.zeros((5, 1280), np.float32),
    "a dict": {"a.png": 1},
    "a set": {"a.png"},
    "None": None,
    "a number": 5,
    "a table of two columns": np.array([["a.png", "x"]], object),
}


@pytest.mark.parametrize("kind", NOT_SEVERAL)
def test_a_single_image_or_no_list_is_refused(kind: str) -> None:
    with pytest.raises(XfeatError) as refused:
        as_images(NOT_SEVERAL[kind])
    assert isinstance(refused.value, TypeError)


def test_a_mask_is_seen_in_an_array_of_images() -> None:
    images = np.ma.masked_array(np.stack([GREY, GREY]), np.stack([GREY > 300, GREY > 9]))
    first, second = as_images(images)
    assert np.array_equal(pixels(first)[..., 0], GREY)
    with pytest.raises(ImageError, match="masked"):
        pixels(second)
