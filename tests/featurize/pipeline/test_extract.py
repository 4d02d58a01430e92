"""Extraction: what is computed, what is reused, and what is left untouched."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.caches import as_schema1, edit_cache
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.errors import MismatchError
from xfeat.featurize.pipeline import compute
from xfeat.featurize.pipeline.extract import Changes

if TYPE_CHECKING:
    from conftest import Bench


def test_every_image_is_computed_once(bench: Bench) -> None:
    done = bench.run()
    cache = bench.check()
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
    before = bench.state()
    monkeypatch.setattr(compute, "read_images", lambda *_a, **_k: pytest.fail("an image was read"))
    done = bench.run()
    assert (done.images, done.computed, done.reused, done.up_to_date) == (12, 0, 12, True)
    assert done.changes == Changes(0, 0, 0)
    assert bench.state() == before
    assert bench.opened == 1


def test_only_what_changed_is_computed(bench: Bench, art: SimpleNamespace) -> None:
    bench.run()
    art.draw(bench.data / "covid/000.png", seed=77)
    art.draw(bench.data / "normal/new.png", seed=78)
    (bench.data / "covid/001.png").unlink()
    done = bench.run()
    assert (done.images, done.computed, done.reused) == (12, 2, 10)
    assert done.changes == Changes(new=1, changed=1, vanished=1)
    cache = bench.check()
    assert "covid/001.png" not in cache.columns.path
    assert "normal/new.png" in cache.columns.path


def test_a_moved_or_copied_image_is_recognised_without_opening_the_engine(bench: Bench) -> None:
    bench.run()
    (bench.data / "covid/000.png").rename(bench.data / "normal/moved.png")
    shutil.copyfile(bench.data / "covid/001.png", bench.data / "covid/copy.png")
    done = bench.run()
    assert (done.images, done.computed, bench.opened) == (13, 0, 1)
    cache = bench.check()
    labels = dict(zip(cache.columns.path, cache.columns.label.tolist(), strict=True))
    assert (labels["normal/moved.png"], labels["covid/copy.png"]) == (1, 0)


def test_the_same_image_twice_is_computed_once(bench: Bench) -> None:
    for number in range(5):
        shutil.copyfile(bench.data / "covid/000.png", bench.data / f"normal/copy{number}.png")
    done = bench.run()
    assert (done.images, done.computed, bench.engine.images) == (17, 12, 12)
    bench.check()


def test_a_file_that_was_only_touched_is_not_computed(bench: Bench) -> None:
    bench.run()
    os.utime(bench.data / "covid/000.png", (1_000_000_000, 1_000_000_000))
    done = bench.run()
    assert (done.computed, done.rehashed, done.changes.changed) == (0, 1, 0)
    assert bench.run().up_to_date


def rewrite_unseen(path: Path, content: bytes) -> None:
    """Write other content of the same length, and put the time of change back."""
    before = path.stat()
    assert before.st_size == len(content)
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_two_files_of_one_size_that_are_exchanged_with_their_times_put_back_are_noticed(
    bench: Bench, art: SimpleNamespace
) -> None:
    first, second = art.draw(bench.data / "covid/a.bmp", seed=1), art.draw(bench.data / "normal/b.bmp", seed=2)
    bench.run()
    contents = first.read_bytes(), second.read_bytes()
    rewrite_unseen(first, contents[1])
    rewrite_unseen(second, contents[0])
    done = bench.run()
    assert (done.computed, done.rehashed, done.changes) == (0, 0, Changes(new=0, changed=2, vanished=0))
    bench.check()
    assert bench.run().up_to_date


def test_other_content_of_the_same_size_and_time_is_computed(bench: Bench, art: SimpleNamespace) -> None:
    victim = art.draw(bench.data / "covid/a.bmp", seed=1)
    bench.run()
    rewrite_unseen(victim, art.encoded(art.pixels_of(9), "BMP"))
    done = bench.run()
    assert (done.computed, done.reused, done.changes.changed) == (1, 12, 1)
    bench.check()


def test_a_file_whose_rights_changed_is_hashed_once_and_not_decoded(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.run()
    (bench.data / "covid/000.png").chmod(0o600)
    monkeypatch.setattr(
        "xfeat.featurize.pipeline.reading.load_views", lambda *_a, **_k: pytest.fail("an image was decoded")
    )
    done = bench.run()
    assert (done.computed, done.rehashed, done.changes) == (0, 1, Changes(0, 0, 0))
    bench.check()
    assert (bench.run().rehashed, bench.opened) == (0, 1)


def test_a_cache_of_version_1_is_hashed_and_not_computed(bench: Bench) -> None:
    """Its marks of change are of another kind. What was computed from it finds the same content in version 2."""
    bench.run()
    old = FeatureCache.open(bench.output)
    times = [(bench.data / path).stat().st_ctime_ns for path in old.columns.path]
    edit_cache(bench.output, {"change_mark": times})
    as_schema1(bench.output)
    done = bench.run()
    assert (done.computed, done.rehashed, bench.opened) == (0, 12, 1)
    assert (bench.check().schema_version, bench.check().content_sha256) == (2, old.content_sha256)
    assert np.array_equal(bench.check().columns.change_mark, old.columns.change_mark)
    assert (bench.run().rehashed, bench.run().up_to_date) == (0, True)


def test_a_change_within_the_clocks_resolution_is_noticed(
    bench: Bench, art: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same size, same time, other content: only possible for files that were new when they were read."""
    monkeypatch.setattr("xfeat.featurize.sources.folder._SETTLED_NS", 10**18)
    victim = art.draw(bench.data / "covid/fresh.bmp", seed=1)
    times = victim.stat()
    bench.run()
    before = bench.state()
    done = bench.run()
    assert (done.up_to_date, done.rehashed) == (True, 13)
    assert bench.state() == before, "being in doubt is no reason to write"
    art.draw(victim, seed=2)
    os.utime(victim, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert victim.stat().st_size == times.st_size
    assert bench.run().changes.changed == 1
    bench.check()


@pytest.mark.parametrize("dated", [0, 4_102_444_800_000_000_000], ids=["1970", "2100"])
def test_files_that_were_new_are_hashed_once_more_and_then_believed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, dated: int
) -> None:
    """Files dated 1970 come from reproducible archives, those of the future from clocks that are wrong."""
    for path in bench.data.rglob("*.png"):
        os.utime(path, ns=(dated, dated))
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr("xfeat.featurize.sources.folder._settled", lambda _: False)
        assert bench.run().computed == 12
    monkeypatch.setattr("xfeat.featurize.sources.folder._SETTLED_NS", -1)
    assert [bench.run().rehashed for _ in range(3)] == [12, 0, 0]
    assert bench.run().up_to_date
    bench.check()


def test_labels_and_groups_follow_without_computing(bench: Bench) -> None:
    bench.run()
    (bench.data / "groups.csv").write_text("path,group\n" + "".join(f"covid/{i:03d}.png,p{i}\n" for i in range(6)))
    bench.run()
    assert FeatureCache.open(bench.output).columns.group[:2] == ["p0", "p1"]
    done = bench.run(classes=["normal"])
    cache = bench.check()
    assert (done.images, cache.class_names, set(cache.columns.label.tolist())) == (6, ("normal",), {0})
    assert bench.engine.images == 12


def test_another_spec_is_refused_and_nothing_is_touched(bench: Bench) -> None:
    bench.run()
    before = bench.state()
    other = dataclasses.replace(bench.spec, dtype="float16")
    with pytest.raises(MismatchError, match=r"float16(.|\n)*float32(.|\n)*--force"):
        bench.run(spec=other)
    assert bench.state() == before
    assert bench.run(spec=other, force=True).computed == 12
    assert FeatureCache.open(bench.output).features.dtype == np.float16


def test_force_recomputes_everything(bench: Bench) -> None:
    bench.run()
    done = bench.run(force=True)
    assert (done.computed, done.reused, bench.engine.images) == (12, 0, 24)
    bench.check()


def test_the_output_folder_is_made(bench: Bench) -> None:
    bench.output = bench.output.parent / "not" / "yet" / "features.h5"
    bench.run()
    bench.check()


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
