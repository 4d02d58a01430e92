"""Images that cannot be read: skipped with a reason, never in silence, and taken in once they are mended."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.errors import DataError
from xfeat.featurize.pipeline.extract import Changes

if TYPE_CHECKING:
    from conftest import Bench


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
    bench.check()


def test_a_second_run_with_unreadable_images_opens_no_engine_either(bench: Bench) -> None:
    (bench.data / "covid/text.jpg").write_text("not an image")
    bench.run()
    before = bench.state()
    assert bench.run().up_to_date
    assert bench.opened == 1
    assert bench.state() == before


def test_an_image_that_is_mended_comes_in(bench: Bench, art: SimpleNamespace) -> None:
    (bench.data / "covid/late.png").write_bytes(b"")
    bench.run()
    art.draw(bench.data / "covid/late.png", seed=55)
    done = bench.run()
    assert (done.images, done.computed, done.skipped) == (13, 1, [])
    bench.check()


def test_an_image_that_breaks_leaves_with_a_reason(bench: Bench) -> None:
    bench.run()
    (bench.data / "covid/000.png").write_bytes(b"overwritten")
    done = bench.run()
    assert (done.images, [path for path, _ in done.skipped]) == (11, ["covid/000.png"])
    assert done.changes == Changes(0, 0, 0)
    bench.check()


def test_on_error_fail_stops_and_keeps_what_is_finished(bench: Bench) -> None:
    (bench.data / "normal/zzz.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"zzz\.png(.|\n)*--on-error skip"):
        bench.run(fail_on_error=True)
    assert not bench.output.exists()
    (bench.data / "normal/zzz.png").unlink()
    before = bench.engine.images
    assert bench.run(fail_on_error=True).images == 12
    assert bench.engine.images - before < 12
    bench.check()


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
    cache = bench.check()
    assert cache.columns.truncated.sum() == 1


def test_features_that_are_not_finite_are_never_kept(bench: Bench) -> None:
    features = bench.engine.features

    def overflowing(pixels: np.ndarray) -> np.ndarray:
        rows = features(pixels)
        rows[rows[:, 0] == bench.expected_row("covid/003.png")[0]] = 1e6
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
    # A file is read when it is asked for, so that nothing is read ahead.
    one_by_one = lambda function, items, *_: (function(item) for item in items)  # noqa: E731
    monkeypatch.setattr("xfeat.featurize.pipeline.reading.in_threads", one_by_one)
    done = bench.run(workers=1)
    assert [path for path, _ in done.skipped] == ["normal/005.png"]
    bench.check()


def test_a_cache_keeps_the_layout_and_what_was_left_out(bench: Bench) -> None:
    (bench.data / "covid" / "IMG_1.CR2").write_bytes(b"x")
    bench.run()
    cache = bench.check()
    assert cache.layout == "2 classes"
    assert cache.left_out == {
        "not a known kind of image": {"files": 1, "suffixes": {".cr2": 1}, "example": "covid/IMG_1.CR2"}
    }
    (bench.data / "covid" / "IMG_1.CR2").unlink()
    assert not bench.run().up_to_date
    assert bench.check().left_out == {}
