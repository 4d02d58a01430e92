"""Every command, stopped by Ctrl-C or SIGTERM at random moments, ends within five seconds, with nothing half-written.

The commands are real, and large enough to be under way; each is stopped at several moments between its start and its
end. Afterwards the same command, not stopped, does its work.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xfeat.featurize.cache.reader import FeatureCache

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
BACKBONE = ("--backbone", "efficientnet-lite0", "--size", "96")
LIMIT_S = 5.0
MOMENTS = 4

COMMANDS = {
    "featurize, threads": ("xfeat", "featurize", "data", "-o", "new.h5", *BACKBONE, "--decode-in", "threads"),
    "featurize, processes": (
        *("xfeat", "featurize", "data", "-o", "new.h5", *BACKBONE),
        *("--decode-in", "processes", "--workers", "2"),
    ),
    "split": ("xfeat", "split", "data/train", "new-split", "--copy"),
    "verify": ("xfeat", "verify"),
    "audit": ("xfeat", "audit", "-o", "new.html"),
    "train": ("xhead", "train", "--epochs", "5000", "--patience", "5000", "--name", "new"),
    "sweep, compiled": ("xhead", "sweep", "--hidden", "256", "--epochs", "2000", "--seeds", "4", "--name", "new"),
    "sweep, torch": ("xhead", "sweep", "--hidden", "linear", "--epochs", "2", "--trials", "30", "--name", "new"),
    "crossval": ("xhead", "crossval", "--epochs", "500", "--name", "new"),
    "eval": ("xhead", "eval", "data/test", "--run", "runs/first"),
    "export": ("xexport", "onnx", "runs/first", "-o", "new.onnx"),
    "export verify": ("xexport", "verify", "--run", "runs/first"),
    "quantize": ("xexport", "quantize", "--run", "runs/first", "-o", "new.onnx"),
    "bench": ("xexport", "bench", "--seconds", "2"),
    "explain": ("xexport", "explain", "model.onnx", "data/test", "-o", "new-heatmaps"),
    "serve": ("xserve", "start", "--port", "{port}"),
    "predict": ("xserve", "predict", "data"),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project with images, features, a run and a model."""
    folder = tmp_path_factory.mktemp("project")
    noise = np.random.default_rng(0)
    for split, count in (("train", 120), ("valid", 40), ("test", 40)):
        for index in range(2 * count):
            path = folder / "data" / split / ("covid", "normal")[index % 2] / f"{split}{index:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise.integers(90 * (index % 2), 256, (200, 220), dtype=np.uint8)).save(path)
    for command in (
        ("xfeat", "featurize", "data", *BACKBONE),
        ("xhead", "train", "--epochs", "3", "--name", "first"),
        ("xexport", "onnx", "runs/first"),
    ):
        run(folder, command, check=True)
    return folder


def run(folder: Path, command: tuple[str, ...], *, check: bool) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BIN / command[0], *command[1:]], cwd=folder, capture_output=True, text=True, check=check)


def stop_after(folder: Path, command: tuple[str, ...], seconds: float, stop: signal.Signals) -> tuple[int | None, str]:
    """Start a command, stop it after some seconds; return its exit code, and stderr."""
    process = subprocess.Popen(
        [BIN / command[0], *command[1:]],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        # Ctrl-C goes to all processes of a terminal, SIGTERM usually to the one that was started.
        os.killpg(process.pid, stop) if stop == signal.SIGINT else process.send_signal(stop)
    started = time.monotonic()
    try:
        process.wait(LIMIT_S + 1)  # a second for the signal to arrive on a busy machine
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None, f"still there {time.monotonic() - started:.0f} s after {stop.name}"
    assert process.stderr is not None
    with process.stderr:
        return process.returncode, process.stderr.read()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_ends_within_five_seconds(project: Path, tmp_path: Path, name: str, stop: signal.Signals) -> None:
    folder = tmp_path / "project"
    shutil.copytree(project, folder, symlinks=True)
    command = tuple(part.format(port=free_port()) for part in COMMANDS[name])
    moments = random.Random(f"{name} {stop.name}")
    longest = 12.0
    for _ in range(MOMENTS):
        moment = moments.uniform(0.5, longest)
        code, said = stop_after(folder, command, moment, stop)
        assert "Traceback" not in said, said
        if name == "serve" and code == 0:  # it ends in order; before it is ready, it is stopped as the others are
            continue
        if code == 0 and "stopped" not in said:  # it was faster than the signal
            longest = moment
            continue
        assert code == 130, (moment, code, said)
        assert "stopped" in said
        assert not_half_written(folder) == []
    if name not in ("serve", "train", "crossval", "sweep, compiled"):  # these take minutes
        done = run(folder, command, check=False)
        assert done.returncode in (0, 1) if name == "quantize" else done.returncode == 0, done.stderr


def test_what_is_finished_is_said(project: Path, tmp_path: Path) -> None:
    """A command that resumes says what it has kept, and not only that it was stopped."""
    (tmp_path / "data").symlink_to(project / "data")
    command = COMMANDS["featurize, threads"]
    process = subprocess.Popen(
        [BIN / command[0], *command[1:]], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    while "images to read" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert "images are finished and stored in" in said
    assert "it resumes" in said


def not_half_written(folder: Path) -> list[str]:
    """Return what a stopped command must not leave: temporary files, files that cannot be read."""
    left = [str(path) for path in folder.rglob("*") if path.name.endswith((".tmp", ".unfinished", ".old", ".held"))]
    for cache in folder.glob("*.h5"):
        FeatureCache.open(cache).verify()
    return left + [str(path) for path in (folder / "new.onnx", folder / "new-split") if path.exists()]
