"""Where images come from: other folders, archives, and views of one image."""

from __future__ import annotations

import dataclasses
import os
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from xfeat.featurize.backbones.weights import sha256_of
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.engines.engine import in_batches
from xfeat.featurize.errors import Interrupted
from xfeat.featurize.images.decode import decode
from xfeat.featurize.pipeline.extract import parts_folder

if TYPE_CHECKING:
    from conftest import Bench


def draw_twins(bench: Bench, art: SimpleNamespace) -> Path:
    """Return a second folder with the names, sizes and times of the first and other pixels in every file."""
    other = bench.data.with_name("other")
    for folder, first_seed in ((bench.data, 0), (other, 100)):
        shutil.rmtree(folder, ignore_errors=True)
        for index in range(6):
            path = art.draw(folder / ("covid", "normal")[index % 2] / f"{index}.bmp", seed=first_seed + index)
            os.utime(path, (1_600_000_000, 1_600_000_000))
    return other


def test_names_sizes_and_times_tell_nothing_of_another_folder(bench: Bench, art: SimpleNamespace) -> None:
    """Archives unpacked side by side: every file has a namesake of the same size and time."""
    other = draw_twins(bench, art)
    bench.run()
    bench.data = other
    done = bench.run()
    assert (done.computed, done.reused, done.changes.changed) == (6, 0, 6)
    cache = bench.check()
    assert cache.columns.sha256 == [sha256_of(other / path) for path in cache.columns.path]
    assert bench.run().up_to_date


def test_shards_of_another_folder_are_not_mixed_up(bench: Bench, art: SimpleNamespace) -> None:
    other = draw_twins(bench, art)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xfeat.featurize.pipeline.extract.write_cache", _interrupt)
        with pytest.raises(Interrupted):
            bench.run()
    assert list(parts_folder(bench.output).glob("*.npz"))
    bench.data = other
    assert bench.run().computed == 6
    bench.check()


def _interrupt(*_args: object, **_kwargs: object) -> None:
    raise KeyboardInterrupt


def test_a_data_folder_that_was_moved_is_read_and_not_computed(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.run()
    bench.data = bench.data.rename(bench.data.with_name("moved"))
    done = bench.run()
    assert (done.computed, done.reused, done.rehashed, bench.opened) == (0, 12, 12, 1)
    cache = bench.check()
    assert cache.data_root == str(bench.data.resolve())
    assert bench.run().up_to_date
    assert "replace" not in caplog.text


def test_a_cache_of_quite_other_images_is_replaced_with_a_warning(
    bench: Bench, art: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    first, other = bench.data, draw_twins(bench, art)
    bench.run()
    bench.data = other
    bench.run()
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert str(first.resolve()) in said
    assert str(other.resolve()) in said
    assert "-o" in said


# Archives and views


def pack(folder: Path, target: Path, **options: Any) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for path in sorted(folder.rglob("*.*")):
            archive.write(path, path.relative_to(folder).as_posix())
    return target


def test_an_archive_gives_the_features_of_its_folder(bench: Bench, tmp_path: Path) -> None:
    bench.run()
    expected = FeatureCache.open(bench.output)
    archive = pack(bench.data, tmp_path / "data.zip")
    bench.output = tmp_path / "zipped.h5"
    bench.run(data=archive)
    cache = FeatureCache.open(bench.output)
    assert np.array_equal(cache.features, expected.features)
    assert (cache.columns.path, cache.columns.sha256) == (expected.columns.path, expected.columns.sha256)
    before = bench.state()
    assert bench.run(data=archive).up_to_date
    assert bench.state() == before


def test_a_member_that_changes_in_place_is_noticed_by_its_crc(
    bench: Bench, tmp_path: Path, art: SimpleNamespace
) -> None:
    shutil.rmtree(bench.data)
    victim = art.draw(bench.data / "covid/a.bmp", seed=1)
    art.draw(bench.data / "normal/b.bmp", seed=2)
    bench.run(data=pack(bench.data, tmp_path / "data.zip"))
    times = victim.stat()
    art.draw(victim, seed=3)
    os.utime(victim, ns=(times.st_atime_ns, times.st_mtime_ns))
    done = bench.run(data=pack(bench.data, tmp_path / "data.zip"))
    assert (done.computed, done.changes.changed) == (1, 1)


def test_members_that_cannot_be_read_are_skipped(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = pack(bench.data, tmp_path / "data.zip")
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as opened:
        first = opened.getinfo("covid/000.png")
    content[first.header_offset + 30 + len(first.filename) + 40] ^= 0xFF
    archive.write_bytes(content)
    done = bench.run(data=archive)
    assert done.images == 11
    assert [path for path, _ in done.skipped] == ["covid/000.png"]
    assert "cannot be read from the archive" in done.skipped[0].reason


@pytest.mark.parametrize("date", [b"\x00\x00\x00\x00", b"\xff\xff\xff\xff"])
def test_members_without_a_date_are_read_and_believed(bench: Bench, tmp_path: Path, date: bytes) -> None:
    """Streaming and reproducible writers leave the date out, which zip has no sign for."""
    archive = pack(bench.data, tmp_path / "data.zip")
    content = bytearray(archive.read_bytes())
    at = content.find(b"PK\x01\x02")
    while at >= 0:
        content[at + 12 : at + 16] = date
        at = content.find(b"PK\x01\x02", at + 1)
    archive.write_bytes(content)
    assert bench.run(data=archive).computed == 12
    done = bench.run(data=archive)
    assert (done.up_to_date, done.rehashed, bench.opened) == (True, 0, 1)


def test_an_archive_that_would_blow_up_is_not_unpacked(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xfeat.featurize.sources.image_source.MAX_FILE_BYTES", 1 << 20)
    archive = pack(bench.data, tmp_path / "data.zip")
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("covid/bomb.png", bytes(1 << 22))
    done = bench.run(data=archive)
    assert done.skipped == [("covid/bomb.png", "4 MB is more than the limit of 1 MB")]


def test_a_large_file_is_refused_before_it_is_read(bench: Bench) -> None:
    with (bench.data / "covid/huge.png").open("wb") as file:
        file.truncate(1 << 40)  # a hole: it takes no space on the disk
    done = bench.run()
    assert "more than the limit of" in done.skipped[0].reason


def test_views_are_seeded_by_the_content(bench: Bench) -> None:
    spec = dataclasses.replace(bench.spec, views=3)
    bench.run(spec=spec)
    cache = FeatureCache.open(bench.output)
    assert cache.features.shape == (12, 3, 3)
    for path, rows in zip(cache.columns.path, cache.features, strict=True):
        assert np.array_equal(rows[0], bench.expected_row(path)), "view 0 is the clean image"
        assert len({row.tobytes() for row in rows}) == 3, "the others differ"
    bench.output = bench.output.with_name("again.h5")
    bench.engine.batch_size = 7
    bench.run(spec=spec, workers=1)
    assert FeatureCache.open(bench.output).content_sha256 == cache.content_sha256


def test_padding_is_never_kept(bench: Bench) -> None:
    """The last batch is filled up with black images, which must not become rows."""
    plain = bench.engine.features
    bench.engine.features = lambda pixels: in_batches(pixels, 5, plain)  # type: ignore[method-assign]
    bench.engine.batch_size = 5
    bench.run()
    assert bench.engine.images == 15
    assert len(bench.check()) == 12


def test_a_view_looks_like_the_image_it_comes_from(art: SimpleNamespace) -> None:
    """The reference is the clean image: views correlate with it, upright or mirrored, and are as bright."""
    from xfeat.featurize.images.augmentation import load_views
    from xfeat.featurize.specs import PreprocessSpec

    data = art.encoded(art.pixels_of(4, 300, 260))
    views = load_views(data, PreprocessSpec(size=64), views=9, sha256="ab" * 32)
    assert views.shape == (9, 64, 64, 3)
    clean = np.asarray(decode(data).resize((64, 64)), float)
    inner = slice(12, 52)
    for view in views[1:, :, :, 0].astype(float):
        closeness = [
            np.corrcoef(candidate[inner, inner].ravel(), clean[inner, inner].ravel())[0, 1]
            for candidate in (view, view[:, ::-1])
        ]
        assert max(closeness) > 0.6
        assert 0.75 < view[inner, inner].mean() / clean[inner, inner].mean() < 1.3
