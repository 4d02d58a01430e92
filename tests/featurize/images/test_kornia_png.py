"""Plain PNG files through kornia-rs: Pillow is the reference for every pixel and for every refusal."""

from __future__ import annotations

import io
import random
import struct
import zlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from xfeat.featurize.errors import ImageError
from xfeat.featurize.images import kornia_png, limits
from xfeat.featurize.images.decode import decode
from xfeat.featurize.images.kornia_png import decode_plain_png
from xfeat.featurize.pipeline.reading import read_images
from xfeat.featurize.sources.folder import FolderSource
from xfeat.featurize.specs import FeatureSpec, PreprocessSpec

pytest.importorskip("kornia_rs", reason="kornia-rs is not installed: pip install 'xfeat-onnx[fast]'")


def plain(data: bytes) -> np.ndarray | None:
    image = decode_plain_png(data)
    return None if image is None else np.asarray(image)


def with_chunk(kind: bytes, content: bytes) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add(kind, content)
    return info


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from(["L", "RGB"]),
    st.booleans(),
    st.integers(0, 9),
    st.binary(max_size=4),
)
def test_it_gives_pillows_pixels(
    width: int, height: int, mode: str, smooth: bool, compression: int, trailing: bytes
) -> None:
    noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    slope = np.add.outer(3 * np.arange(height), 2 * np.arange(width)).astype(np.uint8)[..., None].repeat(3, axis=2)
    file = io.BytesIO()
    Image.fromarray(slope if smooth else noise).convert(mode).save(file, "PNG", compress_level=compression)
    data = file.getvalue() + trailing
    reference = Image.open(io.BytesIO(data))
    found = decode_plain_png(data)
    assert found is not None
    assert found.mode == reference.mode == mode
    assert np.array_equal(np.asarray(found), np.asarray(reference))


def oriented() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("1", {}),
        ("LA", {}),
        ("RGBA", {}),
        ("P", {}),
        ("I;16", {}),
        ("L", {"transparency": 5}),
        ("L", {"exif": oriented()}),
        ("L", {"icc_profile": b"a profile"}),
        ("L", {"pnginfo": with_chunk(b"zTXt", b"Raw profile type exif\0\0")}),
        ("L", {"pnginfo": with_chunk(b"tEXt", b"Raw profile type exif\0exif")}),
        ("L", {"pnginfo": with_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0")}),
    ],
)
def test_what_is_not_plain_is_left_to_pillow(mode: str, options: dict[str, Any]) -> None:
    file = io.BytesIO()
    (Image.new("L", (9, 7), 100).convert(mode) if mode != "I;16" else Image.new(mode, (9, 7))).save(
        file, "PNG", **options
    )
    assert plain(file.getvalue()) is None


def test_notes_that_change_no_pixel_are_plain(art: SimpleNamespace) -> None:
    pixels = art.pixels_of(1)
    for kind, content in ((b"gAMA", b"\0\0\xb1\x8f"), (b"tEXt", b"Software\0xray"), (b"sRGB", b"\0")):
        data = art.encoded(pixels, pnginfo=with_chunk(kind, content))
        assert kind in data
        assert np.array_equal(plain(data), pixels)


def outcome(data: bytes, **options: bool) -> tuple[str, bytes]:
    try:
        image = decode(data, **options)
    except ImageError as error:
        return error.what, b""
    return f"{image.mode} {image.size}", image.tobytes()


def test_a_damaged_file_has_the_outcome_that_it_has_without(art: SimpleNamespace) -> None:
    chance = random.Random(0)
    whole = [art.encoded(art.pixels_of(seed, channels=channels)) for seed in (1, 2) for channels in (1, 3)]
    for _ in range(400):
        data = bytearray(chance.choice(whole))
        if chance.random() < 0.3:
            del data[chance.randrange(9, len(data)) :]
        else:
            data[chance.randrange(9, len(data))] = chance.randrange(256)
        assert outcome(bytes(data), may_hold_gil=True) == outcome(bytes(data))


def test_a_file_whose_pixels_do_not_match_their_checksum_is_the_one_known_exception(art: SimpleNamespace) -> None:
    """Chunks are whole, zlib's checksum is not: Pillow leaves the last row black, kornia-rs reads it.

    See docs/decisions/0016-plain-png.md; pinned so that whoever changes either decoder sees it.
    """
    pixels = art.pixels_of(1)
    data = art.encoded(pixels)
    at = data.index(b"IDAT")
    (length,) = struct.unpack_from(">I", data, at - 4)
    chunk = data[at : at + length] + bytes(4)  # the checksum is the stream's last four bytes
    wrong = data[:at] + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[at + length + 8 :]
    by_pillow, by_kornia = np.asarray(decode(wrong)), np.asarray(decode(wrong, may_hold_gil=True))
    assert np.array_equal(by_kornia, pixels)
    assert np.array_equal(by_pillow[:-1], pixels[:-1])
    assert not by_pillow[-1].any()


def test_too_many_pixels_are_refused_as_by_pillow(art: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    data = art.encoded(art.pixels_of(1))
    for module in (kornia_png, limits):
        monkeypatch.setattr(module, "MAX_PIXELS", 10)
    with pytest.raises(ImageError, match="megapixels"):
        decode(data, may_hold_gil=True)


def test_only_one_thread_at_a_time_holds_the_lock(art: SimpleNamespace) -> None:
    data = art.encoded(art.pixels_of(1))
    with kornia_png._TURN:
        assert plain(data) is None
        assert np.array_equal(np.asarray(decode(data, may_hold_gil=True)), art.pixels_of(1))
    assert plain(data) is not None


@pytest.mark.parametrize(("workers", "used"), [(1, True), (8, False)])
def test_reading_uses_it_where_threads_are_few(
    art: SimpleNamespace, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, workers: int, used: bool
) -> None:
    (tmp_path / "a.png").write_bytes(art.encoded(art.pixels_of(1)))
    calls = []

    def spy(data: bytes) -> Image.Image | None:
        calls.append(data)
        return decode_plain_png(data)

    monkeypatch.setattr("xfeat.featurize.images.decode.decode_plain_png", spy)
    spec = FeatureSpec(backbone="efficientnet-lite0", weights_sha256="0" * 64, preprocess=PreprocessSpec(size=32))
    (image,) = read_images(FolderSource(tmp_path), ["a.png"], spec, is_known=lambda _: False, workers=workers)
    assert image.pixels is not None
    assert bool(calls) == used
