"""One picture, stored in every way that people have: read as its 8-bit PNG is, or refused with the true reason."""

from __future__ import annotations

import ast
import base64
import io
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from tests.inputs.image_bytes import png_16, tiff
from xfeat.featurize.errors import ImageError
from xfeat.featurize.images.decode import decode
from xfeat.featurize.images.preprocess import load_pixels
from xfeat.featurize.specs import PreprocessSpec

ROWS, COLUMNS = np.mgrid[:64, :64]
GREY = (60 + 2 * ROWS + COLUMNS).astype(np.uint8)  # 60 to 249
COLOUR = np.stack([GREY, 255 - GREY, GREY // 2], axis=2)
BLACK = np.zeros_like(GREY)
WIDE = GREY.astype(np.uint16)
WIDE_COLOUR = COLOUR.astype(np.uint16)
OPAQUE = np.full_like(WIDE, 65535)


def encoded(pixels: np.ndarray | Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, kind, **options)
    return file.getvalue()


def pgm(levels: np.ndarray, white: int) -> bytes:
    return b"P5 64 64 %d\n" % white + levels.astype(">u2").tobytes()


def jpeg_2000(levels: np.ndarray, bits: int, codecformat: str = "jp2") -> bytes:
    """Return a JPEG 2000 file of any number of bits; Pillow writes 8 and 16 only."""
    return bytes(
        imagecodecs.jpeg2k_encode(
            levels.astype(np.uint16), level=0, reversible=True, bitspersample=bits, codecformat=codecformat
        )
    )


def packed_12(levels: np.ndarray) -> np.ndarray:
    """Pack pairs of 12-bit levels into three bytes, as TIFF has them."""
    first, second = levels[:, ::2].astype(np.uint32), levels[:, 1::2].astype(np.uint32)
    triples = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=2)
    return triples.reshape(len(levels), -1).astype(np.uint8)


def alpha_of(colour: int, alpha: np.ndarray) -> np.ndarray:
    return np.dstack([np.full((64, 64, 3), colour, np.uint8), alpha])


def frames(kind: str, *pixels: np.ndarray, **options: Any) -> bytes:
    first, *others = map(Image.fromarray, pixels)
    return encoded(first, kind, save_all=True, append_images=others, **options)


def exif_turned(kind: str, pixels: np.ndarray, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(np.rot90(pixels).copy(), kind, exif=exif, **options)


def turned_16() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(np.rot90(WIDE * 257).copy(), "PNG", exif=exif)


# The same picture, 64 × 64, as pillow-heif wrote it with quality 90.
HEIC_PICTURE = (COLUMNS * 3 + ROWS).astype(np.uint8)
HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWl4AAAAAG1pZjFoZWl4bWlhZgAAAU5tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9jAAAA"
    "AERAAAEAAQAAAAABcgABAAAAAAAAALAAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAAzmlwcnAAAACv"
    "aXBjbwAAAHJodmNDAQQIAAAAn/gAAAAAHvAA/Pz4+AAADwNgAAEAF0ABDAH//wQIAAADAJ/4AAADAAAeugJAYQABACZCAQEECAAAAwCf+AAAAwAA"
    "HsCCBBZbqSSmubAgAAADAyAAAAMAIWIAAQAHRAHBcrAiQAAAABNjb2xybmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAQAAAAA5waXhpAAAA"
    "AAEIAAAAF2lwbWEAAAAAAAAAAQABBIECAwQAAAC4bWRhdAAAAKwoAa4McOX8029gLmNHcVqdOpHVnEoGicTvfE41McZ5/wT7f+PKT56Xd2x67Lem"
    "5G4mu9kyueF+2L0DcfOE1ipSzFZfbj5JLqn1qZNVff5HlH71oaGx9Po2vN1vEps0+k8SXdt3PrGvglRpaOOiv3QGYxdUvOptPb+FAKNj9Rak/cuS"
    "DeN+dFYNU8+zd+0ZVOrOqyI15SuXlOqANMZ7vCuir/Ykwl+CB8x08mnP"
)

# Name of a way to store the picture: file, what is seen, and if need be options of the spec, and levels that differ.
READ: dict[str, tuple[Any, ...]] = {
    "PNG, 16 bits": (png_16(WIDE * 257), GREY),
    "PNG, 16 bits, shifted": (png_16(WIDE * 256), GREY),
    "PNG, 16 bits, turned by EXIF": (turned_16(), GREY),
    "PNG, 16 bits, 12 stated and shifted": (png_16(WIDE * 256, significant=12), GREY),
    "PNG, 12 of 16 bits": (png_16(WIDE * 16), GREY, {"grey_bits": 12}),
    "PNG, 12 of 16 bits, whole range": (png_16((WIDE * 4095.0 / 255).round().astype(int)), GREY, {"grey_bits": 12}),
    "PNG, 10 of 16 bits": (png_16(WIDE * 4), GREY, {"grey_bits": 10}),
    "PNG, 8 of 16 bits": (png_16(WIDE), GREY, {"grey_bits": 8}),
    "PNG, above white": (png_16(WIDE * 32), np.minimum(GREY.astype(int) * 2, 255), {"grey_bits": 12}),
    "PNG, RGB, 16 bits": (png_16(WIDE_COLOUR * 257), COLOUR),
    "PNG, RGB, 12 of 16 bits": (png_16(WIDE_COLOUR * 16), COLOUR, {"grey_bits": 12}),
    "PNG, RGBA, 12 of 16 bits": (png_16(np.dstack([WIDE_COLOUR * 16, OPAQUE])), COLOUR, {"grey_bits": 12}),
    "PNG, grey with alpha, 16 bits": (png_16(np.dstack([WIDE * 257, OPAQUE])), GREY),
    "PNG, grey with alpha, 10 of 16 bits": (
        png_16(np.dstack([WIDE * 4, OPAQUE])),
        GREY,
        {"grey_bits": 10},
    ),
    "PNG, RGB": (encoded(COLOUR, "PNG"), COLOUR),
    "PNG, turned by EXIF": (exif_turned("PNG", COLOUR), COLOUR),
    "PNG, palette": (encoded(Image.fromarray(GREY).convert("P"), "PNG"), GREY),
    "PNG, one bit": (encoded(GREY > 127, "PNG"), np.where(GREY > 127, 255, 0)),
    "PNG, opaque": (encoded(np.dstack([COLOUR, BLACK + 255]), "PNG"), COLOUR),
    "PNG, half transparent picture": (encoded(np.dstack([COLOUR, GREY]), "PNG"), COLOUR),
    "PNG, grey with alpha": (encoded(np.dstack([GREY, 255 - GREY]), "PNG"), GREY),
    "PNG, black ink in alpha": (encoded(alpha_of(0, 255 - GREY), "PNG"), GREY),
    "PNG, white ink in alpha": (encoded(alpha_of(255, GREY), "PNG"), GREY),
    "PNG, grey ink in alpha": (encoded(np.dstack([BLACK, 255 - GREY]), "PNG"), GREY),
    "PNG, animation of one frame": (frames("PNG", GREY), GREY),
    "WebP, black ink in alpha": (encoded(alpha_of(0, 255 - GREY), "WEBP", lossless=True, exact=True), GREY),
    "TIFF, 8 bits, MinIsWhite": (tiff(255 - GREY, photometric=0), GREY),
    "TIFF, 16 bits": (tiff(WIDE * 257), GREY),
    "TIFF, 12 bits, packed": (tiff(packed_12(WIDE * 16), bits=12), GREY, {"grey_bits": 8}),
    "TIFF, signed, without negative levels": (tiff(WIDE.astype(np.int16) * 128), GREY),
    "TIFF, floating-point, MinIsWhite": (tiff(1 - GREY.astype(np.float32) / 255, photometric=0), GREY),
    "TIFF, RGB, 16 bits": (tiff(WIDE_COLOUR * 257, photometric=2), COLOUR),
    **{
        f"TIFF, RGBA, 12 of 16 bits, premultiplied, {order}": (
            tiff(np.dstack([WIDE_COLOUR * 8, OPAQUE // 2]), photometric=2, extra=[1], order=order),
            COLOUR,
            {"grey_bits": 12},
            1,
        )
        for order in "<>"
    },
    "TIFF, YCbCr": (
        tiff(np.asarray(Image.fromarray(COLOUR).convert("YCbCr")), photometric=6, tags=[[(530, 1)]]),
        COLOUR,
        {},
        3,
    ),
    "TIFF, RGB, 8 bits, planar": (tiff(COLOUR, photometric=2, planar=2), COLOUR),
    "TIFF, grey and another channel": (tiff(np.dstack([GREY, BLACK]), extra=[0]), GREY),
    **{
        f"TIFF, {name}, {'Deflate' if deflate else 'plain'}, {'big' if order == '>' else 'little'}-endian": (
            tiff(levels, order=order, deflate=deflate, photometric=photometric),
            COLOUR if photometric == 2 else GREY,
            {"grey_bits": 12},
        )
        for order in "<>"
        for deflate in (False, True)
        for name, levels, photometric in (
            ("12 of 16 bits", WIDE * 16, 1),
            ("12 of 16 bits, MinIsWhite", 4095 - WIDE * 16, 0),
            ("12 of 16 bits, signed", WIDE.astype(np.int16) * 16, 1),
            ("12 of 16 bits, RGB", WIDE_COLOUR * 16, 2),
            ("12 of 32 bits", GREY.astype(np.uint32) * 16, 1),
            ("12 of 32 bits, signed", GREY.astype(np.int32) * 16, 1),
            ("floating-point", GREY.astype(np.float32) / 255, 1),
        )
    },
    "TIFF, 32 bits, big-endian": (tiff(GREY.astype(np.uint32) * 256, order=">"), GREY),
    "TIFF, LZW, 12 of 16 bits": (encoded(WIDE * 16, "TIFF", compression="tiff_lzw"), GREY, {"grey_bits": 12}),
    "TIFF, Group 4": (
        encoded(Image.fromarray(GREY > 127), "TIFF", compression="group4"),
        np.where(GREY > 127, 255, 0),
    ),
    "TIFF, turned by EXIF": (exif_turned("TIFF", COLOUR), COLOUR),
    "TIFF with a thumbnail": (tiff(GREY, BLACK[:16, :16], tags=[[], [(254, 1)]]), GREY),
    "TIFF with a thumbnail first": (tiff(BLACK[:16, :16], GREY, tags=[[(254, 1)], []]), GREY),
    "TIFF, first of three pages": (tiff(GREY, BLACK, BLACK), GREY, {"frames": "first"}),
    "TIFF, middle of three pages": (tiff(BLACK, GREY, BLACK), GREY, {"frames": "middle"}),
    "TIFF, first of thousands": (tiff(GREY, *[GREY[:1, :1]] * 1100), GREY, {"frames": "first"}),
    "PGM, first of two": (pgm(WIDE * 257, 65535) * 2, GREY, {"frames": "first"}),
    "PPM, RGB, 12 of 16 bits": (
        b"P6 64 64 65535\n" + (WIDE_COLOUR * 16).astype(">u2").tobytes(),
        COLOUR,
        {"grey_bits": 12},
    ),
    "PPM, RGB, text, 12 of 16 bits": (
        b"P3 64 64 65535\n" + " ".join(map(str, (WIDE_COLOUR * 16).ravel())).encode(),
        COLOUR,
        {"grey_bits": 12},
    ),
    "PPM, RGB, text with a comment, 12 of 16 bits": (
        b"P3 64 64 65535\n# 12 bits\n" + " ".join(map(str, (WIDE_COLOUR * 16).ravel())).encode(),
        COLOUR,
        {"grey_bits": 12},
    ),
    "PPM, RGB, white at 4095": (
        b"P6 64 64 4095\n" + (WIDE_COLOUR * 16.06).astype(">u2").tobytes(),
        COLOUR,
        {"grey_bits": 8},
        1,
    ),
    "PBM": (b"P4 64 64\n" + np.packbits(GREY < 128, axis=1).tobytes(), np.where(GREY < 128, 0, 255)),
    "APNG, first frame": (frames("PNG", GREY, BLACK), GREY, {"frames": "first"}),
    "GIF, middle frame": (frames("GIF", BLACK, GREY, BLACK), GREY, {"frames": "middle"}),
    "GIF": (encoded(GREY, "GIF"), GREY),
    "WebP, middle frame": (
        frames("WEBP", *(np.dstack([each] * 3) for each in (BLACK, GREY, BLACK)), lossless=True),
        GREY,
        {"frames": "middle"},
    ),
    "JPEG": (encoded(GREY, "JPEG", quality=100), GREY, {}, 3),
    "JPEG, progressive": (encoded(GREY, "JPEG", quality=100, progressive=True), GREY, {}, 3),
    "JPEG, CMYK": (encoded(Image.fromarray(COLOUR).convert("CMYK"), "JPEG", quality=100), COLOUR, {}, 6),
    "MPO, with a second picture": (frames("MPO", GREY, BLACK, quality=100), GREY, {}, 3),
    "JPEG 2000": (encoded(GREY, "JPEG2000", irreversible=False), GREY),
    "JPEG 2000, 16 bits": (encoded(WIDE * 257, "JPEG2000", irreversible=False), GREY),
    "JPEG 2000, 10 of 16 bits": (encoded(WIDE * 4, "JPEG2000", irreversible=False), GREY, {"grey_bits": 10}),
    "JPEG 2000, 12 bits": (jpeg_2000(WIDE * 16, 12), GREY, {"grey_bits": 8}),
    "JPEG 2000, RGB, 12 bits": (jpeg_2000(WIDE_COLOUR * 16, 12), COLOUR, {"grey_bits": 8}),
    "JPEG 2000, a codestream": (jpeg_2000(WIDE * 4, 10, codecformat="j2k"), GREY),
    "PGM, white at 1023": (pgm(WIDE * 1023.0 / 255 + 0.5, 1023), GREY, {"grey_bits": 8}),
    "PGM, white at 65535": (pgm(WIDE * 257, 65535), GREY),
    "PGM, 10 of 16 bits": (pgm(WIDE * 4, 65535), GREY, {"grey_bits": 10}),
    "BMP": (encoded(GREY, "BMP"), GREY),
    "AVIF": (encoded(COLOUR, "AVIF", quality=100, subsampling="4:4:4"), COLOUR, {}, 6),
    "HEIC": (HEIC, HEIC_PICTURE, {}, 4),
}

REFUSED: dict[str, tuple[Any, ...]] = {
    "signed": (tiff(WIDE.astype(np.int16) * 8 - 1000), "signed grey levels from -520 to 992"),
    "signed, 8 bits": (tiff((GREY // 2).astype(np.int8)), "TIFF, 1 channel of 8 bits, signed"),
    "32 bits": (tiff(GREY.astype(np.uint32) * 16843009), "32-bit grey levels up to 4193909241: white is not known"),
    "floating-point, 0 to 255": (tiff(GREY.astype(np.float32)), "floating-point grey levels from 60 to 249"),
    "floating-point, not a number": (tiff(GREY.astype(np.float32) * np.nan), "floating-point grey levels from nan"),
    "half precision": (tiff(GREY.astype(np.float16) / 255), "TIFF, 1 channel of 16 bits, floating-point"),
    "double precision": (tiff(GREY.astype(np.float64) / 255), "TIFF, 1 channel of 64 bits, floating-point"),
    "two channels of 16 bits": (tiff(np.dstack([WIDE, WIDE]), extra=[0]), "TIFF, 2 channels of 16 bits"),
    "five channels": (tiff(np.dstack([GREY] * 5), extra=[0] * 4), "TIFF, 5 channels of 8 bits"),
    "RGB, 16 bits, planar": (
        tiff(WIDE_COLOUR * 257, photometric=2, planar=2),
        "TIFF, 3 channels of 16 bits, RGB, planar",
    ),
    "one plane, 16 bits": (tiff(WIDE[..., None] * 257, planar=2), "TIFF, 1 channel of 16 bits, planar"),
    "one plane, MinIsWhite": (tiff(GREY[..., None], planar=2, photometric=0), "TIFF, 1 channel of 8 bits, MinIsWhite"),
    "black or white": (tiff(GREY, left_out=[262]), "does not say whether 0 is black or white"),
    "CMYK, 16 bits": (
        tiff(np.dstack([WIDE] * 4) * 16, photometric=5),
        "TIFF, 4 channels of 16 bits, CMYK",
    ),
    "thousands of pages": (tiff(*[GREY[:1, :1]] * 1100), "more than 1000 pages"),
    "two PGM in one file": (pgm(WIDE * 257, 65535) * 2, "several pictures, one after another"),
    "YCbCr, a colour for four pixels": (tiff(COLOUR, photometric=6), "TIFF, 3 channels of 8 bits, YCbCr:"),
    "a volume": (tiff(GREY, tags=[[(32997, 32)]]), "TIFF, 1 channel of 8 bits, 32 slices"),
    "unknown compression": (tiff(GREY, tags=[[(259, 34933)]]), "TIFF, 1 channel of 8 bits, compression 34933"),
    "damaged pixels": (
        tiff(GREY, tags=[[(259, 8)]]),
        "TIFF, 1 channel of 8 bits, Deflate cannot be decoded",
    ),
    "PAM": (b"P7\nWIDTH 64\n", "PAM, not a JPEG"),
    "raw sensor data": (tiff(WIDE, photometric=32803), "TIFF, 1 channel of 16 bits, raw sensor data"),
    "BigTIFF, five channels": (
        encoded(GREY, "TIFF", big_tiff=True).replace(
            b"\x06\x01\x03\0\x01\0\0\0\0\0\0\0\x01", b"\x06\x01\x03\0\x01\0\0\0\0\0\0\0\x63"
        ),
        "TIFF, 1 channel of 8 bits, unknown colours",
    ),
    "pages": (tiff(BLACK, GREY, GREY, GREY), "4 pages, not one picture: xfeat featurize --frames first"),
    "APNG": (frames("PNG", BLACK, GREY), "2 frames"),
    "animated WebP": (frames("WEBP", np.dstack([BLACK] * 3), np.dstack([GREY] * 3)), "2 frames"),
    "animated GIF": (frames("GIF", BLACK, GREY, BLACK), "3 frames"),
    "animated AVIF": (frames("AVIF", np.dstack([BLACK] * 3), np.dstack([GREY] * 3)), "2 frames"),
    "HTML": (b"<!DOCTYPE html><html>404</html>", "HTML page, not a JPEG"),
    "PDF": (b"%PDF-1.7\n", "PDF, not a JPEG"),
    "JPEG XL": (b"\xff\x0a" + bytes(range(9)), "JPEG XL, not a JPEG"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer: run git lfs pull"),
    "text": (b"nothing", "text, not a JPEG"),
    "zeros": (bytes(5000), "only zeros"),
    "NumPy": (b"\x93NUMPY\x01\0", "NumPy array"),
    "cut PNG": (png_16(WIDE)[:20], "PNG cannot be decoded"),
    "nothing": (b"", "the file is empty"),
    "zeros after the name of a PNG": (b"\x89PNG\r\n\x1a\n" + bytes(100), "damaged PNG"),
    "zeros after the name of a JPEG": (b"\xff\xd8\xff\xe0" + bytes(20), "JPEG"),
    "zeros after the name of a GIF": (b"GIF89a" + bytes(50), "damaged GIF"),
    "JPEG, 12 bits": (
        encoded(GREY, "JPEG").replace(b"\xff\xc0\0\x0b\x08", b"\xff\xc1\0\x0b\x0c"),
        "JPEG with 12 bits per channel",
    ),
    "JPEG-LS": (encoded(GREY, "JPEG").replace(b"\xff\xc0\0\x0b", b"\xff\xf7\0\x0b"), "lossless JPEG with 8 bits"),
    "JPEG XR": (b"II\xbc\x01" + bytes(range(200)), "JPEG XR, not a JPEG"),
    "JPEG 2000, 4 bits": (
        bytes(imagecodecs.jpeg2k_encode(GREY // 16, level=0, reversible=True, bitspersample=4)),
        "JPEG 2000 of 4 bits per channel: save it",
    ),
    "JPEG 2000, signed": (
        bytes(imagecodecs.jpeg2k_encode(WIDE.astype(np.int16), level=0, reversible=True)),
        "JPEG 2000 of 16 bits per channel with a sign",
    ),
    "JPEG 2000, RGB, 16 bits": (jpeg_2000(WIDE_COLOUR * 16, 16), "JPEG 2000, colours of 16 bits"),
    "JPEG, lossless": (
        encoded(GREY, "JPEG").replace(b"\xff\xc0\0\x0b\x08", b"\xff\xc3\0\x0b\x08"),
        "lossless JPEG with 8 bits per channel",
    ),
}


@pytest.mark.parametrize("way", READ)
def test_the_same_picture_is_seen_however_it_is_stored(way: str) -> None:
    data, expected, *others = READ[way]
    options = others[0] if others else {}
    tolerance = others[1] if len(others) > 1 else 0
    for may_hold_gil in (False, True):
        image = decode(data, PreprocessSpec(**options), may_hold_gil=may_hold_gil)
        assert image.mode in ("L", "RGB")
        if np.ndim(expected) == 2 and tolerance == 0 and image.mode == "RGB":
            assert np.ptp(np.asarray(image), axis=2).max() == 0  # grey, stored as colours
        seen = np.asarray(image.convert("RGB" if np.ndim(expected) == 3 else "L")).astype(int)
        assert seen.shape == np.shape(expected)
        assert np.abs(seen - expected).max() <= tolerance


@pytest.mark.parametrize("way", REFUSED)
def test_what_cannot_be_read_is_refused_with_what_it_is(way: str) -> None:
    data, reason = REFUSED[way]
    for may_hold_gil in (False, True):
        with pytest.raises(ImageError) as refusal:
            decode(data, may_hold_gil=may_hold_gil)
        assert reason in str(refusal.value)


def test_heic_names_the_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from xfeat.featurize.images import decode as module

    monkeypatch.setattr(module, "_heif_formats", lambda: ())
    with pytest.raises(ImageError, match=r"HEIC files need pip install 'xfeat-onnx\[heic\]'"):
        decode(HEIC)


def test_the_pixels_of_the_network_have_the_range_of_the_spec() -> None:
    spec = PreprocessSpec(size=64, grey_bits=10)
    assert np.array_equal(load_pixels(png_16(WIDE * 4), spec), load_pixels(encoded(GREY, "PNG"), spec))


def many_scans(scans: int, pixels: np.ndarray) -> bytes:
    """Return a progressive JPEG whose last scan is repeated."""
    whole = encoded(pixels, "JPEG", progressive=True)
    last = whole[whole.rfind(b"\xff\xda") : -2]
    return whole[:-2] + last * (scans - whole.count(b"\xff\xda")) + whole[-2:]


def test_a_jpeg_of_absurdly_many_scans_is_refused() -> None:
    with pytest.raises(ImageError, match="JPEG of more than 100 scans"):
        decode(many_scans(2000, GREY))
    assert np.asarray(decode(many_scans(90, GREY))).shape == (64, 64)
    large = np.zeros((5000, 8000), np.uint8)
    with pytest.raises(ImageError, match="JPEG of more than 50 scans"):
        decode(many_scans(60, large))


def test_scans_of_an_embedded_thumbnail_do_not_count() -> None:
    whole = encoded(GREY, "JPEG")
    thumbnail = b"\xff\xda" * 30_000
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    assert np.array_equal(np.asarray(decode(whole[:2] + segment + whole[2:])), np.asarray(decode(whole)))


def test_every_reader_of_images_says_how_they_are_read() -> None:
    """A caller that forgets the spec would read 16-bit images in another range than those trained on."""
    root = Path(__file__).parents[2]
    for package in ("featurize", "head", "export", "serve"):
        for file in (root / package).rglob("*.py"):
            nodes = list(ast.walk(ast.parse(file.read_text())))
            imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
            found = {each.name for node in imports if "images.decode" in str(node.module) for each in node.names}
            for node in nodes:
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") in found & {"decode", "read_levels"}:
                    assert len(node.args) == 2, f"{file.relative_to(root)}:{node.lineno}"
