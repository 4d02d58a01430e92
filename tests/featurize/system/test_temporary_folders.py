"""Temporary folders of killed processes are deleted by the next one that needs a folder, and nobody else's are."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xfeat.featurize.system.user_cache import temporary_folder
from xfeat.head.reports.worker import Worker

HOLD = (
    "from xfeat.featurize.system.user_cache import temporary_folder as f; d = f(); print(d.name, flush=True); input()"
)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder for temporary files of this test alone."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


@pytest.fixture
def start() -> Iterator[Callable[[], tuple[subprocess.Popen[str], Path]]]:
    """Return a function that starts a process with a temporary folder, and gives both."""
    processes = []

    def started() -> tuple[subprocess.Popen[str], Path]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    yield started
    for process in processes:
        process.kill()
        process.communicate()


def test_the_folder_of_a_killed_process_is_deleted_and_that_of_a_living_one_stays(start) -> None:
    (killed, abandoned), (_, in_use) = start(), start()
    (abandoned / "weights").write_bytes(b"0" * 1000)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert abandoned.exists()
    with temporary_folder() as own:
        assert not abandoned.exists()
        assert in_use.exists()
        assert Path(own).exists()
    assert not Path(own).exists()


def test_a_process_that_ends_by_itself_leaves_nothing(start, temporary: Path) -> None:
    process, folder = start()
    assert folder.parent == temporary
    process.communicate("\n")
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("kind", ["without mark", "of another user", "link", "file", "other name", "mark is a folder"])
def test_what_somebody_else_has_there_stays(
    kind: str, start, temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, abandoned = start()
    process.kill()
    process.wait()
    other = temporary / ("xfeat-other" if kind != "other name" else "other-xfeat-1")
    if kind == "link":
        shutil.move(abandoned, tmp_path / "elsewhere")
        other.symlink_to(tmp_path / "elsewhere")
    elif kind == "file":
        other.write_text("no folder")
    elif kind == "mark is a folder":
        (other / ".in-use").mkdir(parents=True)
    else:
        shutil.move(abandoned, other)
    if kind == "without mark":
        (other / ".in-use").unlink()
    if kind == "of another user":
        uid = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    with temporary_folder():
        assert other.exists()
    if kind == "link":
        assert any((tmp_path / "elsewhere").iterdir())


def test_two_folders_of_one_process_are_both_in_use() -> None:
    with temporary_folder() as first, temporary_folder() as second:
        assert Path(first).exists()
        assert Path(second).exists()
        assert first != second


def test_a_worker_that_is_killed_leaves_nothing(temporary: Path) -> None:
    with Worker("xfeat.head.reports.plots") as worker:
        made = Path(worker(tempfile.mkdtemp))
        assert made.is_relative_to(temporary)
        assert made.exists()
    assert list(temporary.iterdir()) == []


def test_a_killed_command_leaves_nothing_after_the_next(temporary: Path) -> None:
    code = (
        "import time; from xfeat.head.reports.worker import Worker; w = Worker(); print(1, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    assert list(temporary.iterdir()) != []
    with temporary_folder() as own:
        assert list(temporary.iterdir()) == [Path(own)]
