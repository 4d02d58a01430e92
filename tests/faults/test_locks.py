"""Locks name their holder; a stale one is told from a live one, also on a file system without locks."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import lacking

# Takes a lock for some seconds. On a second machine, another process number says nothing: its namespace differs.
HOLDER = """
import sys, time
from pathlib import Path
from xfeat.featurize.errors import BusyError
from xfeat.featurize.system import locks
from xfeat.featurize.system.locks import locked

file, seconds, machine = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
locks._STALE_S = 5.0
if machine:
    locks._namespace = lambda: machine
    locks.platform.node = lambda: machine
try:
    with locked(file, "busy", of=file):
        print("held", flush=True)
        time.sleep(seconds)
except BusyError as busy:
    print(busy)
"""


@pytest.fixture(params=["with locks", "without locks"])
def environment(request: pytest.FixtureRequest, library: Path, tmp_path: Path) -> dict[str, str]:
    return dict(os.environ) if request.param == "with locks" else lacking(library, tmp_path, FLOCK=errno.ENOLCK)


@pytest.fixture
def without_locks(library: Path, tmp_path: Path) -> dict[str, str]:
    return lacking(library, tmp_path, FLOCK=errno.ENOLCK)


def start(file: Path, environment: dict[str, str], seconds: float = 0.0, machine: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, str(file), str(seconds), machine]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def outcome(process: subprocess.Popen[str]) -> str:
    return process.communicate(timeout=60)[0].strip()


def hold(file: Path, environment: dict[str, str], machine: str = "") -> subprocess.Popen[str]:
    holder = start(file, environment, 60, machine)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


@pytest.mark.slow
def test_a_live_lock_names_its_holder(environment: dict[str, str], tmp_path: Path) -> None:
    holder = hold(tmp_path / "lock", environment)
    said = outcome(start(tmp_path / "lock", environment))
    assert f"process {holder.pid} on host {os.uname().nodename}, since 20" in said
    assert "wait" in said
    holder.kill()
    holder.communicate()


def test_a_killed_process_holds_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    holder = hold(tmp_path / "lock", environment)
    holder.kill()
    holder.communicate()
    started = time.monotonic()
    assert outcome(start(tmp_path / "lock", environment)) == "held"
    assert time.monotonic() - started < 5


def test_a_released_lock_is_free(environment: dict[str, str], tmp_path: Path) -> None:
    assert [outcome(start(tmp_path / "lock", environment)) for _ in range(2)] == ["held", "held"]


@pytest.mark.slow
def test_a_lock_renewed_on_another_machine_is_live(without_locks: dict[str, str], tmp_path: Path) -> None:
    holder = hold(tmp_path / "lock", without_locks, "gauss")
    assert "on host gauss, since" in outcome(start(tmp_path / "lock", without_locks))
    holder.kill()
    holder.communicate()


def edited(**facts: object) -> Callable[[Path], None]:
    def edit(file: Path) -> None:
        file.write_text(json.dumps({**json.loads(file.read_text()), **facts}))

    return edit


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        lambda file: None,  # of this machine, whose process runs: a copy, since nobody renews it
        edited(host="gauss", namespace="gauss"),
        edited(namespace=""),
        edited(pid=1),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"\xff\x00"),
        lambda file: file.write_text("[]"),
        lambda file: file.write_text('{"pid": "none"}'),
    ],
    ids=["copy", "copy from another machine", "unknown machine", "pid reused", "empty", "bytes", "list", "no pid"],
)
def test_a_lock_that_nobody_renews_is_taken_over(
    without_locks: dict[str, str], tmp_path: Path, change: Callable[[Path], None]
) -> None:
    holder = hold(tmp_path / "lock", without_locks)
    shutil.copytree(tmp_path, tmp_path / "copy")
    change(tmp_path / "copy" / "lock.held")
    assert outcome(start(tmp_path / "copy" / "lock", without_locks)) == "held"
    assert "process" in outcome(start(tmp_path / "lock", without_locks)), "the original is still held"
    holder.kill()
    holder.communicate()


@pytest.mark.slow
def test_one_of_several_takes_a_stale_lock_over(without_locks: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "lock.held").write_text(json.dumps({"pid": 1, "host": "gauss", "since": "then", "namespace": "x"}))
    contenders = [start(tmp_path / "lock", without_locks, 8) for _ in range(6)]
    assert sum(outcome(contender) == "held" for contender in contenders) == 1
    assert not list(tmp_path.glob("*.stale"))


@pytest.mark.slow
def test_a_suspended_process_does_not_remove_the_lock_of_its_successor(
    without_locks: dict[str, str], tmp_path: Path
) -> None:
    holder = hold(tmp_path / "lock", without_locks)
    holder.send_signal(signal.SIGSTOP)
    successor = hold(tmp_path / "lock", without_locks)
    holder.send_signal(signal.SIGCONT)
    time.sleep(3)
    assert f"process {successor.pid} " in outcome(start(tmp_path / "lock", without_locks))
    for process in (holder, successor):
        process.kill()
        process.communicate()
