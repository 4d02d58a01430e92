"""Checkpoints of finished folds are stored until the cross-validation is complete, and then deleted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from tests.head.conftest import MakeCache
from tests.head.crossval.crossvalidated import HEAD, SHORT, TRAIN, validate
from xfeat.featurize.errors import BusyError, CacheError, DataError, DivergedError, Interrupted, OutputError
from xfeat.head.batched.scheduler import Task, fit_tasks
from xfeat.head.cli import main
from xfeat.head.crossval import training
from xfeat.head.crossval.runner import checkpoint_folder, cross_validate
from xfeat.head.crossval.training import fold_checkpoints
from xfeat.head.runs.resumable import resumable_folder
from xfeat.head.specs import CrossvalSpec, HeadSpec, MemorySpec, TrainSpec

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("fails", ["save_crossval", pytest.param("cross_validate_baselines", marks=pytest.mark.slow)])
def test_a_failure_after_the_last_fold_loses_no_fold(
    make_cache: MakeCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """Such as a full disk: the second call uses the checkpoints of the first, and trains nothing."""
    monkeypatch.chdir(tmp_path)
    make_cache()
    command = [*SHORT, "--baselines", "--json"]

    def fail(*arguments: object, **options: object) -> None:
        raise OutputError("cannot be written: the disk is full", path="runs")

    with monkeypatch.context() as broken:
        broken.setattr(f"xfeat.head.crossval.run.{fails}", fail)
        first = CliRunner().invoke(main, command)
    assert first.exit_code == 1
    assert "2 finished folds are stored in runs" in first.stderr

    def nothing_left(tasks: list[Task], **options: Any) -> Any:
        assert tasks == []
        return fit_tasks(tasks, **options)

    monkeypatch.setattr(training, "fit_tasks", nothing_left)
    second = CliRunner().invoke(main, command)
    assert second.exit_code == 0, second.output
    assert [folder.name for folder in Path("runs").iterdir()] == [Path(json.loads(second.stdout)["crossval"]).name]


class StopAfter:
    """Raises KeyboardInterrupt after a number of folds; records all calls."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.calls: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        self.calls.append((done, total))
        if done == self.count:
            raise KeyboardInterrupt


def test_the_same_call_trains_only_unfinished_folds(
    make_cache: MakeCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, plan = make_cache(sizes=(60,)), CrossvalSpec(folds=3, seeds=2)
    whole = cross_validate(cache, HEAD, TRAIN, plan)
    parts = tmp_path / "new" / "c.parts"
    with pytest.raises(Interrupted, match="4 finished folds") as stop, fold_checkpoints(parts) as kept:
        cross_validate(cache, HEAD, TRAIN, plan, checkpoints=kept, progress=StopAfter(4))
    assert "same command again" in str(stop.value)
    assert len(list(parts.glob("*.float32"))) == 4
    trained: list[int] = []

    def counting(tasks: list[Task], **options: Any) -> Any:
        trained.append(len(tasks))
        return fit_tasks(tasks, **options)

    monkeypatch.setattr(training, "fit_tasks", counting)
    with fold_checkpoints(parts) as kept:
        again = cross_validate(cache, HEAD, TRAIN, plan, checkpoints=kept)
        assert len(list(parts.glob("*.float32"))) == 6  # deleted when the body has finished
    assert trained == [2]
    np.testing.assert_array_equal(again.main.probabilities, whole.main.probabilities)
    np.testing.assert_array_equal(again.main.fold, whole.main.fold)
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:50],
        lambda content: content[:-4] + np.float32(0.5).tobytes(),
    ],
    ids=["cut short", "a probability"],
)
def test_a_changed_checkpoint_is_recomputed(
    make_cache: MakeCache, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    cache, plan = make_cache(sizes=(60,)), CrossvalSpec(folds=3)
    with pytest.raises(Interrupted), fold_checkpoints(tmp_path / "c.parts") as kept:
        cross_validate(cache, HEAD, TRAIN, plan, checkpoints=kept, progress=StopAfter(2))
    for file in (tmp_path / "c.parts").glob("*.float32"):
        whole = file.read_bytes()
        file.write_bytes(damage(whole))
        assert file.read_bytes() != whole
    with fold_checkpoints(tmp_path / "c.parts") as kept:
        again = cross_validate(cache, HEAD, TRAIN, plan, checkpoints=kept)
    np.testing.assert_array_equal(again.main.probabilities, validate(cache).main.probabilities)


@pytest.mark.parametrize("of", ["another fold", "other settings"])
def test_a_checkpoint_in_the_place_of_another_is_recomputed(make_cache: MakeCache, tmp_path: Path, of: str) -> None:
    """All folds have the same number of images."""
    cache, plan = make_cache(sizes=(60,)), CrossvalSpec(folds=3)
    for folder, head in (("other.parts", HeadSpec(hidden=(4,))), ("c.parts", HEAD)):
        with pytest.raises(Interrupted), fold_checkpoints(tmp_path / folder) as kept:
            cross_validate(cache, head, TRAIN, plan, checkpoints=kept, progress=StopAfter(2))
    first, second = sorted((tmp_path / "c.parts").glob("*.float32"))
    if of == "another fold":
        content = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(content)
    else:
        for file in (first, second):
            file.unlink()
        for file in (tmp_path / "other.parts").glob("*.float32"):
            file.replace(tmp_path / "c.parts" / file.name)
    with fold_checkpoints(tmp_path / "c.parts") as kept:
        again = cross_validate(cache, HEAD, TRAIN, plan, checkpoints=kept)
    np.testing.assert_array_equal(again.main.probabilities, validate(cache).main.probabilities)


def test_a_cache_that_changes_during_cross_validation_is_an_error_and_deletes_the_checkpoints(
    make_cache: MakeCache, tmp_path: Path
) -> None:
    cache, content = make_cache(sizes=(60,)), make_cache("b.h5", sizes=(60,), separation=2.0).path.read_bytes()

    def overwrite(done: int, total: int) -> None:
        cache.path.write_bytes(content)

    plan = CrossvalSpec(folds=3)
    with (
        pytest.raises(CacheError, match="overwritten with another cache"),
        fold_checkpoints(tmp_path / "c.parts") as kept,
    ):
        cross_validate(cache, HEAD, TRAIN, plan, checkpoints=kept, progress=overwrite)
    assert not (tmp_path / "c.parts").exists()


def test_two_processes_cannot_use_one_cross_validation(tmp_path: Path) -> None:
    folder = tmp_path / "c.parts"
    with (
        resumable_folder(folder, "cross-validation", keep_if=lambda: True),
        pytest.raises(BusyError, match="cross-validation"),
        fold_checkpoints(folder),
    ):
        pass
    assert folder.exists()  # it belongs to the first process


def test_an_error_or_stop_before_the_first_fold_leaves_nothing(make_cache: MakeCache, tmp_path: Path) -> None:
    cache, parts = make_cache(sizes=(60,)), tmp_path / "new" / "c.parts"
    with pytest.raises(DataError), fold_checkpoints(parts) as kept:
        cross_validate(cache, HEAD, TRAIN, CrossvalSpec(folds=40), checkpoints=kept)
    with pytest.raises(KeyboardInterrupt), fold_checkpoints(parts) as kept:
        cross_validate(cache, HEAD, TRAIN, CrossvalSpec(folds=3), checkpoints=kept, progress=StopAfter(0))
    assert not (tmp_path / "new").exists()


def test_checkpoints_are_deleted_if_a_training_diverges(tmp_path: Path) -> None:
    folder = tmp_path / "c.parts"

    def diverge() -> None:
        (folder / "grouped-seed0-fold0.float32").write_bytes(bytes(12))
        raise DivergedError("training diverged")

    with pytest.raises(DivergedError), fold_checkpoints(folder):
        diverge()
    assert not folder.exists()


def test_everything_that_affects_the_results_is_part_of_the_folder_name(make_cache: MakeCache, tmp_path: Path) -> None:
    first, second = make_cache(sizes=(60,)), make_cache("b.h5", sizes=(60,), separation=2.0)
    plan, memory = CrossvalSpec(), MemorySpec()
    folders = {
        checkpoint_folder(tmp_path, *settings)
        for settings in (
            (first, HEAD, TRAIN, plan, memory),
            (second, HEAD, TRAIN, plan, memory),
            (first, HeadSpec(), TRAIN, plan, memory),
            (first, HEAD, TrainSpec(), plan, memory),
            (first, HEAD, TRAIN, CrossvalSpec(seeds=2), memory),
            (first, HEAD, TRAIN, plan, MemorySpec(memory_mb=1)),
        )
    }
    assert len(folders) == 6


@pytest.mark.skipif(os.name == "nt", reason="SIGINT reaches a child otherwise there")
@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_command_resumes(make_cache: MakeCache, tmp_path: Path, sign: signal.Signals) -> None:
    cache = make_cache(sizes=(200,), separation=0.3)
    arguments = ["crossval", "--features", str(cache.path), "--runs", str(tmp_path / "runs"), "--seeds", "3"]
    arguments += ["--epochs", "20", "--hidden", "64", "--json"]
    code = "from xfeat.head.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path
    ) as process:
        deadline = time.monotonic() + 60
        while len(list((tmp_path / "runs").glob("crossval-*.parts/*.float32"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(sign)
        _, words = process.communicate()
    kept = list((tmp_path / "runs").glob("crossval-*.parts/*.float32"))
    assert 3 <= len(kept) < 15
    if sign == signal.SIGINT:
        assert b"run the same command again to resume" in words
    assert process.returncode != 0
    done = CliRunner().invoke(main, arguments)
    answer = json.loads(done.stdout)
    assert len(answer["accuracy"]["folds"]) == 15
    assert list((tmp_path / "runs").iterdir()) == [Path(answer["crossval"])]
