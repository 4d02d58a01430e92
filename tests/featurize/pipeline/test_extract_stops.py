"""Stopping, failing and going on, with and without ``--force``: no finished image is lost or taken for another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest

from xfeat.featurize.cache.shards import ShardStore
from xfeat.featurize.errors import BusyError, CacheError, Interrupted
from xfeat.featurize.pipeline import compute
from xfeat.featurize.pipeline.extract import parts_folder

if TYPE_CHECKING:
    from conftest import Bench


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
    bench.check()


def test_ctrl_c_while_the_cache_is_written_says_how_to_go_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopping(*_args: object, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("xfeat.featurize.pipeline.extract.write_cache", stopping)
        with pytest.raises(Interrupted, match="run the same command again"):
            bench.run()
    done = bench.run()
    assert (done.computed, done.reused) == (0, 12)
    assert bench.engine.images == 12
    bench.check()


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
    bench.check()


def test_shards_are_used_even_beside_an_older_cache(bench: Bench, art: SimpleNamespace) -> None:
    bench.run()
    for index in range(6):
        art.draw(bench.data / f"covid/{index:03d}.png", seed=500 + index)
    stopped_after(bench, 4)
    done = bench.run()
    assert (done.computed, done.changes.changed) == (2, 6)
    bench.check()


def test_an_image_that_changes_between_stop_and_resume_is_computed_again(bench: Bench, art: SimpleNamespace) -> None:
    stopped_after(bench, 8)
    art.draw(bench.data / "covid/002.png", seed=900)
    assert bench.run().computed == 5
    bench.check()


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
    bench.check()


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
    bench.check()


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
    bench.check()


def test_a_stopped_run_with_force_resumes_with_the_same_command(bench: Bench) -> None:
    bench.run()
    stopped_after(bench, 8, force=True)
    before = bench.engine.images
    done = bench.run(force=True)
    assert (done.computed, done.reused, bench.engine.images - before) == (4, 8, 4)
    bench.check()
    assert bench.run(force=True).computed == 12, "a finished run leaves nothing for the next"


def test_force_reuses_nothing_of_a_run_without_it(bench: Bench) -> None:
    stopped_after(bench, 8)
    assert bench.run(force=True).computed == 12
    stopped_after(bench, 4, force=True)
    bench.output.unlink()
    stopped_after(bench, 4)
    assert bench.run(force=True).computed == 12, "a run without force went on in between"
    bench.check()
