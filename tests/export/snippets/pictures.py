"""One image of each kind that decoders read differently. All are drawn here."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageDraw

WIDTH, HEIGHT = 90, 70


def picture() -> Image.Image:
    """Draw something in colour that looks different in every orientation."""
    image = Image.new("RGB", (WIDTH, HEIGHT), (30, 60, 120))
    draw = ImageDraw.Draw(image)
    draw.rectangle((5, 8, 40, 30), fill=(230, 140, 20))
    draw.ellipse((50, 10, 85, 60), fill=(200, 220, 90))
    draw.line((0, 69, 60, 35), fill=(250, 250, 250), width=7)
    return image


def png(array: np.ndarray, depth: int, kind: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Encode rows as a PNG of any depth and colour type; ``array`` has whole bytes, or 16-bit numbers."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    width = array.shape[1] * 8 // depth if depth < 8 else array.shape[1]
    assert depth < 8 or channels == 1 or array.shape[2] == channels
    rows = b"".join(b"\0" + row.astype(">u2" if depth == 16 else np.uint8).tobytes() for row in array)
    header = struct.pack(">IIBBBBB", width, len(array), depth, kind, 0, 0, 0)
    body = b"".join(chunk(*each) for each in chunks)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def saved(image: Image.Image, kind: str, **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def with_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def exif_block(order: str, orientation: int) -> bytes:
    """A TIFF header and a table of two tags: a description, then the orientation."""
    start = b"II*\0" if order == "<" else b"MM\0*"
    description = struct.pack(f"{order}HHI4s", 0x010E, 2, 3, b"ab\0")
    tag = struct.pack(f"{order}HHIHH", 0x0112, 3, 1, orientation, 0)
    return start + struct.pack(f"{order}IH", 8, 2) + description + tag + b"\0" * 4


RGB = picture()
GREY = RGB.convert("L")
LEVELS = np.asarray(GREY).astype(np.uint16)
COLOURS = np.asarray(RGB).astype(np.uint16)
RAMP = np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1))
INK = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
INK[..., 3] = 255 - np.asarray(GREY)
WHITE_INK = np.concatenate([np.full((HEIGHT, WIDTH, 3), 255, np.uint8), np.asarray(GREY)[..., None]], axis=2)
PALETTE = RGB.quantize(16)
# Red and green exchanged, if anybody looks.
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


def _keyed_palette() -> bytes:
    return saved(PALETTE, "PNG", transparency=bytes([0, 128] + [255] * 14))


def _animation(kind: str) -> bytes:
    return saved(RGB, kind, save_all=True, append_images=[RGB.transpose(Image.Transpose.ROTATE_180)])


FILES: dict[str, Callable[[], bytes]] = {
    "rgb.png": lambda: saved(RGB, "PNG"),
    "grey.png": lambda: saved(GREY, "PNG"),
    "rgb.jpg": lambda: saved(RGB, "JPEG", quality=90),
    "rgb-444.jpg": lambda: saved(RGB, "JPEG", quality=90, subsampling=0),
    "progressive.jpg": lambda: saved(RGB, "JPEG", quality=80, progressive=True),
    "grey.jpg": lambda: saved(GREY, "JPEG"),
    "stored-as-rgb.jpg": lambda: saved(RGB, "JPEG", keep_rgb=True),
    "cmyk.jpg": lambda: saved(RGB.convert("CMYK"), "JPEG"),
    **{f"exif{n}.jpg": (lambda n=n: saved(RGB, "JPEG", quality=95, exif=with_exif(n))) for n in range(1, 9)},
    "exif-little-endian.jpg": lambda: saved(RGB, "JPEG", exif=b"Exif\0\0" + exif_block("<", 5)),
    "exif-big-endian.jpg": lambda: saved(GREY, "JPEG", exif=b"Exif\0\0" + exif_block(">", 3)),
    "exif-damaged.jpg": lambda: saved(RGB, "JPEG", exif=b"Exif\0\0" + exif_block("<", 6)[:17]),
    "two-pictures.jpg": lambda: saved(RGB, "MPO", save_all=True, append_images=[RGB.rotate(180)]),
    "exif6.png": lambda: saved(RGB, "PNG", exif=with_exif(6)),
    "exif9.jpg": lambda: saved(RGB, "JPEG", exif=with_exif(9)),
    "exif8.webp": lambda: saved(RGB, "WEBP", lossless=True, exif=with_exif(8)),
    "grey16.png": lambda: png(LEVELS * 257, 16, 0),
    "grey16-12-bits.png": lambda: png(LEVELS * 16 + 7, 16, 0),
    "grey16-key.png": lambda: png(LEVELS * 257, 16, 0, (b"tRNS", struct.pack(">H", int(LEVELS[0, 0]) * 257))),
    "rgb16.png": lambda: png(COLOURS * 257, 16, 2),
    "rgb16-key.png": lambda: png(COLOURS * 257, 16, 2, (b"tRNS", struct.pack(">3H", *map(int, COLOURS[0, 0] * 257)))),
    "rgba16.png": lambda: png(np.dstack([COLOURS * 257, RAMP.astype(np.uint16) * 257]), 16, 6),
    "la16.png": lambda: png(np.dstack([LEVELS * 257, RAMP.astype(np.uint16) * 257]), 16, 4),
    "rgba.png": lambda: saved(Image.fromarray(np.dstack([np.asarray(RGB), RAMP])), "PNG"),
    "rgba-opaque.png": lambda: saved(RGB.convert("RGBA"), "PNG"),
    "ink.png": lambda: saved(Image.fromarray(INK), "PNG"),
    "white-ink.png": lambda: saved(Image.fromarray(WHITE_INK), "PNG"),
    "la.png": lambda: saved(Image.merge("LA", [GREY, Image.fromarray(RAMP)]), "PNG"),
    "la-ink.png": lambda: saved(Image.merge("LA", [Image.new("L", GREY.size, 20), GREY]), "PNG"),
    "palette.png": lambda: saved(PALETTE, "PNG"),
    "palette-1-bit.png": lambda: saved(RGB.quantize(2), "PNG", bits=1),
    "palette-key.png": _keyed_palette,
    "rgb-key.png": lambda: saved(RGB, "PNG", transparency=(30, 60, 120)),
    "grey-key.png": lambda: saved(GREY, "PNG", transparency=GREY.getpixel((0, 0))),
    "1-bit.png": lambda: saved(GREY.convert("1"), "PNG"),
    "1-bit-key.png": lambda: saved(GREY.convert("1"), "PNG", transparency=0),
    "2-bit.png": lambda: png(np.asarray(GREY)[:, : WIDTH // 4], 2, 0),
    "4-bit.png": lambda: png(np.asarray(GREY)[:, : WIDTH // 2], 4, 0),
    "profile.jpg": lambda: saved(RGB, "JPEG", quality=95, icc_profile=PROFILE),
    "profile.png": lambda: saved(RGB, "PNG", icc_profile=PROFILE),
    "gamma.png": lambda: png(np.asarray(RGB), 8, 2, (b"gAMA", struct.pack(">I", 100_000))),
    "rgb.webp": lambda: saved(RGB, "WEBP", lossless=True),
    "rgba.webp": lambda: saved(Image.fromarray(np.dstack([np.asarray(RGB), RAMP])), "WEBP", lossless=True, exact=True),
    "rgb.gif": lambda: saved(RGB, "GIF"),
    "rgb.bmp": lambda: saved(RGB, "BMP"),
    "rgb.tif": lambda: saved(RGB, "TIFF"),
    "grey16.tif": lambda: saved(Image.fromarray(LEVELS * 257), "TIFF"),
    "inverted16.tif": lambda: saved(Image.fromarray(LEVELS * 257), "TIFF", tiffinfo={262: 0}),
    "float.tif": lambda: saved(Image.fromarray(LEVELS.astype(np.float32) / 255), "TIFF"),
    "rgb.ppm": lambda: saved(RGB, "PPM"),
    "rgb.jp2": lambda: saved(RGB, "JPEG2000"),
    "animated.png": lambda: _animation("PNG"),
    "animated.gif": lambda: _animation("GIF"),
    "animated.webp": lambda: _animation("WEBP"),
    "cut.jpg": lambda: saved(RGB, "JPEG")[:1200],
    "cut.png": lambda: saved(RGB, "PNG")[:400],
    "one-pixel.png": lambda: saved(RGB.crop((40, 20, 41, 21)), "PNG"),
    "wide.png": lambda: saved(RGB.resize((900, 3)), "PNG"),
    "tall.jpg": lambda: saved(RGB.resize((20, 400)), "JPEG", quality=95),
    "dicom.png": lambda: b"\0" * 128 + b"DICM" + b"\2\0\0\0UL\4\0\0\0\0\0" * 9,
    "huge.png": lambda: png(np.zeros((1, 8), np.uint8), 8, 0).replace(
        struct.pack(">II", 8, 1), struct.pack(">II", 20000, 20000)
    ),
    "text.png": lambda: b"not an image",
    "empty.jpg": lambda: b"",
}
# What a language may refuse although xserve reads it.
MAY_REFUSE: dict[str, set[str]] = {
    "python": {"inverted16.tif", "float.tif", "rgb.ppm", "rgb.jp2", "cut.png"},
    "js": {"cmyk.jpg", "rgb16-key.png", "rgb.gif", "rgb.bmp", "cut.jpg", "cut.png"},
}
MAY_REFUSE["js"] |= {name for name in FILES if name.endswith((".tif", ".ppm", ".jp2"))}
MAY_REFUSE["cpp"] = MAY_REFUSE["js"] | {name for name in FILES if name.endswith((".webp", ".gif", ".bmp"))}


def write_all(folder: Path) -> list[Path]:
    """Write all files."""
    for name, make in FILES.items():
        (folder / name).write_bytes(make())
    return [folder / name for name in FILES]
