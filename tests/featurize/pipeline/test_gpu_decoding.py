"""A run whose JPEG files another decoder makes: the same rows, the difference that is kept, and what refuses what."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner

from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.cache.shards import FileIdentity
from xfeat.featurize.cli import main as xfeat
from xfeat.featurize.errors import DeviceError, MismatchError, SpecError
from xfeat.featurize.images.jpeg_header import PlainJpeg, plain_jpeg
from xfeat.featurize.images.nvjpeg import JpegDecoder
from xfeat.featurize.pipeline import gpu_decoding
from xfeat.featurize.pipeline.gpu_decoding import decoded, decoder_for
from xfeat.featurize.pipeline.reading import ReadImage
from xfeat.featurize.specs import FeatureSpec

if TYPE_CHECKING:
    from conftest import Bench


@pytest.fixture
def mixed(bench: Bench, art: SimpleNamespace) -> Bench:
    """Return a data set of PNG and JPEG files, among them one turned, one cut short and one without tables."""
    for number in range(40):
        art.draw(bench.data / "covid" / f"{number:03d}.jpg", seed=500 + number, quality=90)
    content = art.encoded(art.pixels_of(3, channels=3), "JPEG")
    broken = content.replace(b"\xff\xdb", b"\xff\xe9")
    for name, data in {"cut.jpg": content[:-40], "tables.jpg": broken}.items():
        (bench.data / "normal" / name).write_bytes(data)
        art.settle(bench.data / "normal" / name)
    return dataclasses.replace(bench, spec=dataclasses.replace(bench.spec, decoder="nvjpeg"))


def test_rows_are_those_of_pillow_where_the_pixels_are_and_stay_in_order(
    mixed: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """On the CPU torchvision decodes as Pillow does: every row, PNG and JPEG, against Pillow one by one."""
    caplog.set_level("INFO", "xfeat.featurize")
    done = mixed.run(open_decoder=lambda: JpegDecoder("cpu"))
    cache = mixed.check()
    assert (done.images, done.computed, len(cache)) == (54, 54, 54)
    assert "1 JPEG files that were refused by cpu are decoded by Pillow" in caplog.text
    assert done.truncated == ["normal/cut.jpg"]
    difference = cache.decoder_difference
    assert difference is not None
    assert (difference.files, difference.largest_grey_levels, difference.largest_feature) == (16, 0, 0.0)
    assert difference == done.decoder_difference


def test_the_difference_is_measured_kept_and_shown(mixed: Bench, art: SimpleNamespace) -> None:
    """The counting engine answers with mean grey levels: 3 levels more are 3 in each of three equal features."""
    mixed.run(open_decoder=art.Brighter)
    cache = FeatureCache.open(mixed.output)
    cache.verify()
    found = cache.decoder_difference
    assert found is not None
    assert (found.decoder, found.device, found.files) == ("nvjpeg", "a brighter device", 16)
    assert found.largest_grey_levels == 3
    assert 2.5 < found.mean_grey_levels <= 3
    jpegs = {path: row for path, row in zip(cache.columns.path, cache.features, strict=True) if path.endswith("0.jpg")}
    shifts = [(row - mixed.expected_row(path)) / mixed.expected_row(path) for path, row in jpegs.items()]
    assert 0 < np.min(shifts) <= found.largest_feature < 0.2
    shown = CliRunner().invoke(xfeat, ["info", str(mixed.output)]).stdout
    assert "16 JPEG files by nvjpeg (a brighter device) and by Pillow: pixels differ by at most 3 grey levels" in shown
    facts = json.loads(CliRunner().invoke(xfeat, ["info", str(mixed.output), "--json"]).stdout)
    assert facts["decoder_difference"] == found.to_dict()


def test_a_second_run_needs_no_decoder_and_keeps_the_difference(mixed: Bench, art: SimpleNamespace) -> None:
    mixed.run(open_decoder=art.Brighter)
    kept = FeatureCache.open(mixed.output).decoder_difference
    (mixed.data / "normal" / "cut.jpg").unlink()
    done = mixed.run(open_decoder=lambda: pytest.fail("opened the decoder"))
    assert (done.computed, done.changes.vanished, done.up_to_date) == (0, 1, False)
    assert kept is not None
    assert done.decoder_difference == FeatureCache.open(mixed.output).decoder_difference == kept


def test_what_pillow_refuses_too_is_skipped_with_its_reason(mixed: Bench) -> None:
    broken = ReadImage("a.jpg", FileIdentity(9, 0, 0, "0" * 64, False), None, jpeg=PlainJpeg(b"\xff\xd8", 8, 8, True))
    (found,) = decoded([broken], JpegDecoder("cpu"), mixed.spec.preprocess)
    assert (found.pixels, found.identity) == (None, None)
    assert found.reason.startswith("not a JPEG")


def test_images_leave_in_their_order_however_they_are_held_back(
    mixed: Bench, art: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two JPEG files a batch, and others between them: each comes out once, in its place."""
    content = art.encoded(art.pixels_of(3), "JPEG")
    jpeg = plain_jpeg(content)
    images = [ReadImage(str(number), None, None, jpeg=jpeg if number % 3 else None) for number in range(11)]
    for together, held in ((2, 256), (64, 3), (64, 256)):
        monkeypatch.setattr(gpu_decoding, "_FILES_TOGETHER", together)
        monkeypatch.setattr(gpu_decoding, "_HELD_BACK", held)
        found = list(decoded(images, JpegDecoder("cpu"), mixed.spec.preprocess))
        assert [image.path for image in found] == [str(number) for number in range(11)]
        assert [image.pixels is None for image in found] == [number % 3 == 0 for number in range(11)]


def test_rows_of_another_decoder_are_never_reused(mixed: Bench, art: SimpleNamespace) -> None:
    mixed.run(open_decoder=art.Brighter)
    with pytest.raises(MismatchError, match=r"JPEG files decoded by nvjpeg(.|\n)*--force"):
        mixed.run(spec=dataclasses.replace(mixed.spec, decoder="pillow"))


def test_pillow_is_not_written_into_the_spec(lite0_spec: FeatureSpec) -> None:
    """Versions that know no other decoder refuse unknown settings, and fingerprints that people have stay."""
    other = dataclasses.replace(lite0_spec, decoder="nvjpeg")
    assert "decoder" not in lite0_spec.to_dict()
    assert FeatureSpec.from_dict(other.to_dict()) == other
    assert other.fingerprint != lite0_spec.fingerprint
    with pytest.raises(SpecError, match=r"views are made of Pillow's images(.|\n)*--views 1"):
        dataclasses.replace(other, views=2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"engine": "onnxruntime"}, "belongs to torch"),
        ({"engine": "openvino"}, "belongs to torch"),
        ({"engine": "ray"}, "belongs to torch"),
        ({"device": "cpu"}, "one GPU"),
        ({"device": "cuda:0,cuda:1"}, "one GPU"),
    ],
    ids=str,
)
def test_it_is_refused_where_it_cannot_run(lite0_spec: FeatureSpec, options: dict[str, str], said: str) -> None:
    spec = dataclasses.replace(lite0_spec, decoder="nvjpeg")
    with pytest.raises(SpecError, match=said):
        decoder_for(spec, **options)
    assert decoder_for(lite0_spec, **options) is None


def test_without_a_gpu_it_is_an_error_and_never_pillow_instead(
    lite0_spec: FeatureSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_decoding, "resolve_devices", lambda _: ["cpu"])
    opened = decoder_for(dataclasses.replace(lite0_spec, decoder="nvjpeg"))
    assert opened is not None
    with pytest.raises(DeviceError, match=r"runs on a GPU, and there is none(.|\n)*--decoder pillow"):
        opened()


def test_the_command_says_what_it_needs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_decoding, "resolve_devices", lambda _: ["cpu"])
    monkeypatch.chdir(bench.data.parent)
    for options, code, said in (
        ((), 1, "there is none"),
        (("--device", "cpu"), 2, "one GPU"),
        (("--engine", "ray"), 2, "belongs to torch"),
        (("--views", "2"), 2, "--views 1"),
    ):
        lite0 = ("featurize", "data", "--backbone", "efficientnet-lite0", "--size", "32", "--decoder", "nvjpeg")
        done = CliRunner().invoke(xfeat, [*lite0, *options])
        assert (done.exit_code, said in done.stderr) == (code, True), done.stderr
    assert not Path("features.h5").exists()
