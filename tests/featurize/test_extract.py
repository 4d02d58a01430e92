"""Extraction: what is computed, what is reused, and what is left untouched."""

from __future__ import annotations

import dataclasses
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest

from featurize import compute
from featurize.cache import FeatureCache
from featurize.engines.batches import in_batches
from featurize.errors import BusyError, CacheError, DataError, Interrupted, MismatchError
from featurize.extract import Changes, parts_folder
from featurize.images import decode
from featurize.preprocess import load_pixels
from featurize.shards import ShardStore
from featurize.weights import sha256_of

if TYPE_CHECKING:
    from conftest import Bench


def expected_row(bench: Bench, path: str, root: Path | None = None) -> np.ndarray:
    """Work the counting engine's answer out by hand: the mean of each colour."""
    pixels = load_pixels(((root or bench.data) / path).read_bytes(), bench.spec.preprocess)
    return pixels.reshape(-1, 3).mean(axis=0, dtype=np.float64).astype(np.float32)


def check_cache(bench: Bench) -> FeatureCache:
    """Every row belongs to its image, whatever happened before."""
    cache = FeatureCache.open(bench.output)
    cache.verify()
    for path, row in zip(cache.columns.path, cache.features, strict=True):
        assert np.array_equal(row, expected_row(bench, path)), path
    assert not parts_folder(bench.output).exists()
    return cache


def state(path: Path) -> tuple[int, int, bytes]:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, path.read_bytes()


def test_every_image_is_computed_once(bench: Bench) -> None:
    done = bench.run()
    cache = check_cache(bench)
    assert (done.images, done.computed, done.reused, done.engine) == (12, 12, 0, "counting")
    assert bench.engine.images == 12
    assert cache.class_names == ("covid", "normal")
    assert cache.columns.path == sorted(cache.columns.path)
    assert cache.columns.label.tolist() == [0] * 6 + [1] * 6
    assert done.changes == Changes(new=12, changed=0, vanished=0)


def test_a_second_run_opens_no_engine_reads_no_image_and_touches_no_file(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.run()
    before = state(bench.output)
    monkeypatch.setattr(compute, "read_images", lambda *_a, **_k: pytest.fail("an image was read"))
    done = bench.run()
    assert (done.images, done.computed, done.reused, done.up_to_date) == (12, 0, 12, True)
    assert done.changes == Changes(0, 0, 0)
    assert state(bench.output) == before
    assert bench.opened == 1


def test_only_what_changed_is_computed(bench: Bench, art: SimpleNamespace) -> None:
    bench.run()
    art.draw(bench.data / "covid/000.png", seed=77)
    art.draw(bench.data / "normal/new.png", seed=78)
    (bench.data / "covid/001.png").unlink()
    done = bench.run()
    assert (done.images, done.computed, done.reused) == (12, 2, 10)
    assert done.changes == Changes(new=1, changed=1, vanished=1)
    cache = check_cache(bench)
    assert "covid/001.png" not in cache.columns.path
    assert "normal/new.png" in cache.columns.path


def test_a_moved_or_copied_image_is_recognised_without_opening_the_engine(bench: Bench) -> None:
    bench.run()
    (bench.data / "covid/000.png").rename(bench.data / "normal/moved.png")
    shutil.copyfile(bench.data / "covid/001.png", bench.data / "covid/copy.png")
    done = bench.run()
    assert (done.images, done.computed, bench.opened) == (13, 0, 1)
    cache = check_cache(bench)
    labels = dict(zip(cache.columns.path, cache.columns.label.tolist(), strict=True))
    assert (labels["normal/moved.png"], labels["covid/copy.png"]) == (1, 0)


def test_the_same_image_twice_is_computed_once(bench: Bench) -> None:
    for number in range(5):
        shutil.copyfile(bench.data / "covid/000.png", bench.data / f"normal/copy{number}.png")
    done = bench.run()
    assert (done.images, done.computed, bench.engine.images) == (17, 12, 12)
    check_cache(bench)


def test_a_file_that_was_only_touched_is_not_computed(bench: Bench) -> None:
    bench.run()
    os.utime(bench.data / "covid/000.png", (1_000_000_000, 1_000_000_000))
    done = bench.run()
    assert (done.computed, done.changes.changed) == (0, 0)
    assert bench.run().up_to_date


def test_a_change_within_the_clocks_resolution_is_noticed(bench: Bench, art: SimpleNamespace) -> None:
    """Same size, same time, other content: only possible for files that were new when they were read."""
    victim = art.draw(bench.data / "covid/fresh.bmp", seed=1)
    now = victim.stat().st_mtime_ns + 100_000_000_000
    os.utime(victim, ns=(now, now))
    bench.run()
    before = state(bench.output)
    assert bench.run().up_to_date
    assert state(bench.output) == before, "being in doubt is no reason to write"
    size = victim.stat().st_size
    art.draw(victim, seed=2)
    os.utime(victim, ns=(now, now))
    assert victim.stat().st_size == size
    assert bench.run().changes.changed == 1
    check_cache(bench)


def test_labels_and_groups_follow_without_computing(bench: Bench) -> None:
    bench.run()
    (bench.data / "groups.csv").write_text("path,group\n" + "".join(f"covid/{i:03d}.png,p{i}\n" for i in range(6)))
    bench.run()
    assert FeatureCache.open(bench.output).columns.group[:2] == ["p0", "p1"]
    done = bench.run(classes=["normal"])
    cache = check_cache(bench)
    assert (done.images, cache.class_names, set(cache.columns.label.tolist())) == (6, ("normal",), {0})
    assert bench.engine.images == 12


def test_another_spec_is_refused_and_nothing_is_touched(bench: Bench) -> None:
    bench.run()
    before = state(bench.output)
    other = dataclasses.replace(bench.spec, dtype="float16")
    with pytest.raises(MismatchError, match=r"float16(.|\n)*float32(.|\n)*--force"):
        bench.run(spec=other)
    assert state(bench.output) == before
    assert bench.run(spec=other, force=True).computed == 12
    assert FeatureCache.open(bench.output).features.dtype == np.float16


def test_force_computes_everything_anew(bench: Bench) -> None:
    bench.run()
    done = bench.run(force=True)
    assert (done.computed, done.reused, bench.engine.images) == (12, 0, 24)
    check_cache(bench)


def test_the_output_folder_is_made(bench: Bench) -> None:
    bench.output = bench.output.parent / "not" / "yet" / "features.h5"
    bench.run()
    check_cache(bench)


def test_the_result_does_not_depend_on_threads_and_batches(bench: Bench) -> None:
    digests = set()
    for workers, batch_size in ((1, 1), (2, 5), (4, 32)):
        bench.engine.batch_size = batch_size
        bench.run(workers=workers, force=True)
        digests.add(FeatureCache.open(bench.output).content_sha256)
    assert len(digests) == 1


def test_progress_ends_with_everything_done(bench: Bench) -> None:
    (bench.data / "covid/bad.png").write_bytes(b"no image")
    seen: list[tuple[int, int]] = []
    bench.run(progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (13, 13)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


# Images that cannot be read


def test_an_unreadable_image_is_skipped_with_its_reason(bench: Bench) -> None:
    (bench.data / "covid/text.jpg").write_text("not an image")
    (bench.data / "covid/empty.png").touch()
    (bench.data / "covid/folder.png").mkdir()
    (bench.data / "covid/dangling.png").symlink_to("/no/such/file")
    done = bench.run()
    reasons = dict(done.skipped)
    assert done.images == 12
    assert set(reasons) == {"covid/text.jpg", "covid/empty.png", "covid/dangling.png"}
    assert reasons["covid/empty.png"] == "the file is empty"
    assert "No such file" in reasons["covid/dangling.png"]
    assert FeatureCache.open(bench.output).skipped == done.skipped
    assert done.changes.new == 12
    check_cache(bench)


def test_a_second_run_with_unreadable_images_opens_no_engine_either(bench: Bench) -> None:
    (bench.data / "covid/text.jpg").write_text("not an image")
    bench.run()
    before = state(bench.output)
    assert bench.run().up_to_date
    assert bench.opened == 1
    assert state(bench.output) == before


def test_an_image_that_is_mended_comes_in(bench: Bench, art: SimpleNamespace) -> None:
    (bench.data / "covid/late.png").write_bytes(b"")
    bench.run()
    art.draw(bench.data / "covid/late.png", seed=55)
    done = bench.run()
    assert (done.images, done.computed, done.skipped) == (13, 1, [])
    check_cache(bench)


def test_an_image_that_breaks_leaves_with_a_reason(bench: Bench) -> None:
    bench.run()
    (bench.data / "covid/000.png").write_bytes(b"overwritten")
    done = bench.run()
    assert (done.images, [path for path, _ in done.skipped]) == (11, ["covid/000.png"])
    assert done.changes == Changes(0, 0, 0)
    check_cache(bench)


def test_on_error_fail_stops_and_keeps_what_is_finished(bench: Bench) -> None:
    (bench.data / "normal/zzz.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"zzz\.png(.|\n)*--on-error skip"):
        bench.run(fail_on_error=True)
    assert not bench.output.exists()
    (bench.data / "normal/zzz.png").unlink()
    before = bench.engine.images
    assert bench.run(fail_on_error=True).images == 12
    assert bench.engine.images - before < 12
    check_cache(bench)


def test_no_readable_image_at_all_is_an_error(bench: Bench) -> None:
    for path in bench.data.rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"none of the images can be read(.|\n)*not a JPEG"):
        bench.run()
    assert not bench.output.exists()


def test_truncated_images_are_read_and_named(bench: Bench, art: SimpleNamespace) -> None:
    whole = art.encoded(art.pixels_of(1, 200, 200), "JPEG")
    (bench.data / "covid/cut.jpg").write_bytes(whole[: len(whole) // 2])
    done = bench.run()
    assert done.truncated == ["covid/cut.jpg"]
    cache = check_cache(bench)
    assert cache.columns.truncated.sum() == 1


def test_features_that_are_not_finite_are_never_kept(bench: Bench) -> None:
    features = bench.engine.features

    def overflowing(pixels: np.ndarray) -> np.ndarray:
        rows = features(pixels)
        rows[rows[:, 0] == expected_row(bench, "covid/003.png")[0]] = 1e6
        return rows

    bench.engine.features = overflowing  # type: ignore[method-assign]
    done = bench.run(spec=dataclasses.replace(bench.spec, dtype="float16"))
    assert done.skipped == [("covid/003.png", "its features are beyond the range of float16")]
    FeatureCache.open(bench.output).verify()


def test_an_image_that_vanishes_during_the_run_is_reported(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = bench.data / "normal/005.png"
    features = bench.engine.features

    def vanishing(pixels: np.ndarray) -> np.ndarray:
        victim.unlink(missing_ok=True)
        return features(pixels)

    bench.engine.features = vanishing  # type: ignore[method-assign]
    bench.engine.batch_size = 1
    monkeypatch.setattr("featurize.reading.ThreadPoolExecutor", _OneAtATime)
    done = bench.run(workers=1)
    assert [path for path, _ in done.skipped] == ["normal/005.png"]
    check_cache(bench)


class _OneAtATime:
    """A pool that reads a file when its result is asked for, so that nothing is read ahead."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        pass

    def submit(self, function: Any, *arguments: Any) -> Any:
        return SimpleNamespace(result=lambda: function(*arguments))

    def shutdown(self, **_kwargs: Any) -> None:
        pass


# Stopping and going on


@pytest.mark.parametrize("after", [0, 1, 5, 9])
def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(bench: Bench, after: int) -> None:
    features = bench.engine.features

    def stopping(pixels: np.ndarray) -> np.ndarray:
        if bench.engine.images >= after:
            raise KeyboardInterrupt
        return features(pixels)

    bench.engine.batch_size = 1
    bench.engine.features = stopping  # type: ignore[method-assign]
    with pytest.raises(Interrupted, match=r"stopped; (.|\n)*run the same command again"):
        bench.run()
    assert not bench.output.exists()
    bench.engine.features = features  # type: ignore[method-assign]
    done = bench.run()
    assert (done.computed, done.reused) == (12 - after, after)
    check_cache(bench)


def test_ctrl_c_while_the_cache_is_written_says_how_to_go_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopping(*_args: object, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("featurize.extract.write_cache", stopping)
        with pytest.raises(Interrupted, match="run the same command again"):
            bench.run()
    done = bench.run()
    assert (done.computed, done.reused) == (0, 12)
    assert bench.engine.images == 12
    check_cache(bench)


def test_an_engine_that_fails_loses_no_finished_image(bench: Bench) -> None:
    features = bench.engine.features

    def failing(pixels: np.ndarray) -> np.ndarray:
        if bench.engine.images >= 8:
            raise RuntimeError("out of luck")
        return features(pixels)

    bench.engine.features = failing  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="out of luck"):
        bench.run()
    bench.engine.features = features  # type: ignore[method-assign]
    assert bench.run().computed == 4
    check_cache(bench)


def test_shards_are_used_even_beside_an_older_cache(bench: Bench, art: SimpleNamespace) -> None:
    bench.run()
    for index in range(6):
        art.draw(bench.data / f"covid/{index:03d}.png", seed=500 + index)
    features = bench.engine.features

    def stopping(pixels: np.ndarray) -> np.ndarray:
        if bench.engine.images >= 16:
            raise KeyboardInterrupt
        return features(pixels)

    bench.engine.features = stopping  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        bench.run()
    bench.engine.features = features  # type: ignore[method-assign]
    done = bench.run()
    assert (done.computed, done.changes.changed) == (2, 6)
    check_cache(bench)


def test_an_image_that_changes_between_stop_and_resume_is_computed_again(bench: Bench, art: SimpleNamespace) -> None:
    features = bench.engine.features

    def stopping(pixels: np.ndarray) -> np.ndarray:
        if bench.engine.images >= 8:
            raise KeyboardInterrupt
        return features(pixels)

    bench.engine.features = stopping  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        bench.run()
    bench.engine.features = features  # type: ignore[method-assign]
    art.draw(bench.data / "covid/002.png", seed=900)
    assert bench.run().computed == 5
    check_cache(bench)


def test_shards_are_written_as_the_run_goes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "SHARD_ROWS", 4)
    counts: list[int] = []
    append = ShardStore.append

    def counting(store: ShardStore, rows: Any) -> Any:
        counts.append(len(rows))
        return append(store, rows)

    monkeypatch.setattr(ShardStore, "append", counting)
    bench.run()
    assert counts == [4, 4, 4]
    check_cache(bench)


def test_a_second_writer_is_refused(bench: Bench) -> None:
    features = bench.engine.features
    refused: list[BusyError] = []

    def meanwhile(pixels: np.ndarray) -> np.ndarray:
        if not refused:
            with pytest.raises(BusyError, match=r"another process is writing(.|\n)*-o") as caught:
                bench.run()
            refused.append(caught.value)
        return features(pixels)

    bench.engine.features = meanwhile  # type: ignore[method-assign]
    bench.run()
    assert refused
    check_cache(bench)


# --force


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda path: path.write_text("precious notes"), "another kind"),
        (lambda path: path.touch(), "another kind"),
        (lambda path: h5py.File(path, "w").create_dataset("measured", data=[1, 2]).file.close(), "another program"),
        (lambda path: path.mkdir(), "a folder"),
    ],
    ids=["text", "empty", "HDF5", "folder"],
)
def test_force_replaces_no_file_of_another_program(bench: Bench, make: Callable[[Path], object], found: str) -> None:
    make(bench.output)
    before = bench.output.read_bytes() if bench.output.is_file() else None
    with pytest.raises(CacheError, match=rf"--force replaces only feature caches(.|\n)*{found}(.|\n)*-o"):
        bench.run(force=True)
    assert before == (bench.output.read_bytes() if bench.output.is_file() else None)
    assert bench.engine.images == 0
    assert not parts_folder(bench.output).exists()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_force_replaces_a_damaged_cache(bench: Bench, share: float) -> None:
    bench.run()
    content = bench.output.read_bytes()
    bench.output.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CacheError, match="damaged"):
        bench.run()
    assert bench.run(force=True).computed == 12
    check_cache(bench)


def stopped_after(bench: Bench, images: int, **options: Any) -> None:
    """Run until the network has seen so many images more, then press Ctrl-C."""
    features, until = bench.engine.features, bench.engine.images + images

    def stopping(pixels: np.ndarray) -> np.ndarray:
        if bench.engine.images >= until:
            raise KeyboardInterrupt
        return features(pixels)

    bench.engine.features = stopping  # type: ignore[method-assign]
    with pytest.raises(Interrupted, match="run the same command again"):
        bench.run(**options)
    bench.engine.features = features  # type: ignore[method-assign]


def test_a_stopped_run_with_force_goes_on_with_the_same_command(bench: Bench) -> None:
    bench.run()
    stopped_after(bench, 8, force=True)
    before = bench.engine.images
    done = bench.run(force=True)
    assert (done.computed, done.reused, bench.engine.images - before) == (4, 8, 4)
    check_cache(bench)
    assert bench.run(force=True).computed == 12, "a finished run leaves nothing for the next"


def test_force_reuses_nothing_of_a_run_without_it(bench: Bench) -> None:
    stopped_after(bench, 8)
    assert bench.run(force=True).computed == 12
    stopped_after(bench, 4, force=True)
    bench.output.unlink()
    stopped_after(bench, 4)
    assert bench.run(force=True).computed == 12, "a run without force went on in between"
    check_cache(bench)


# Other data roots


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
    cache = check_cache(bench)
    assert cache.columns.sha256 == [sha256_of(other / path) for path in cache.columns.path]
    assert bench.run().up_to_date


def test_shards_of_another_folder_are_told_apart_too(bench: Bench, art: SimpleNamespace) -> None:
    other = draw_twins(bench, art)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featurize.extract.write_cache", _interrupt)
        with pytest.raises(Interrupted):
            bench.run()
    assert list(parts_folder(bench.output).glob("*.npz"))
    bench.data = other
    assert bench.run().computed == 6
    check_cache(bench)


def _interrupt(*_args: object, **_kwargs: object) -> None:
    raise KeyboardInterrupt


def test_a_data_folder_that_was_moved_is_read_and_not_computed(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.run()
    bench.data = bench.data.rename(bench.data.with_name("moved"))
    done = bench.run()
    assert (done.computed, done.reused, bench.opened) == (0, 12, 1)
    cache = check_cache(bench)
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
    before = state(bench.output)
    assert bench.run(data=archive).up_to_date
    assert state(bench.output) == before


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


def test_an_archive_that_would_blow_up_is_not_unpacked(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featurize.sources.MAX_FILE_BYTES", 1 << 20)
    archive = pack(bench.data, tmp_path / "data.zip")
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("covid/bomb.png", bytes(1 << 22))
    done = bench.run(data=archive)
    assert done.skipped == [("covid/bomb.png", "4 MB is more than an image of 1 MB")]


def test_a_large_file_is_refused_before_it_is_read(bench: Bench) -> None:
    with (bench.data / "covid/huge.png").open("wb") as file:
        file.truncate(1 << 40)  # a hole: it takes no space on the disk
    done = bench.run()
    assert "more than an image of" in done.skipped[0].reason


def test_views_are_seeded_by_the_content(bench: Bench) -> None:
    spec = dataclasses.replace(bench.spec, views=3)
    bench.run(spec=spec)
    cache = FeatureCache.open(bench.output)
    assert cache.features.shape == (12, 3, 3)
    for path, rows in zip(cache.columns.path, cache.features, strict=True):
        assert np.array_equal(rows[0], expected_row(bench, path)), "view 0 is the clean image"
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
    assert len(check_cache(bench)) == 12


def test_a_view_looks_like_the_image_it_comes_from(art: SimpleNamespace) -> None:
    """The reference is the clean image: views correlate with it, upright or mirrored, and are as bright."""
    from featurize.specs import PreprocessSpec
    from featurize.views import load_views

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
