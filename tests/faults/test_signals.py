"""Every command, stopped by Ctrl-C or SIGTERM at random moments, ends within five seconds, with nothing half-written.

The commands are real. Each is stopped at several moments between its start and its end; afterwards the same command,
not stopped, does its work, except for those that would take minutes.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from xfeat.featurize.cache.reader import FeatureCache

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
BACKBONE = ("--backbone", "efficientnet-lite0", "--size", "96")
LIMIT_S = 5.0
TRAINING_IMAGES = 240
MOMENTS = (signal.SIGINT, signal.SIGTERM)  # each is sent at a random time
# Exit code, and whether "stopped" is said. Only the signal itself ends a process before Python listens, and at the end.
# 0: it was done; a server that was ready says that it has stopped.
ENDS = {(130, True), (0, False), (0, True), (-signal.SIGINT, False), (-signal.SIGTERM, False)}
ENDLESS = ("train", "sweep, compiled", "crossval", "serve")  # are never done before they are stopped

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
    "eval": ("xhead", "eval", "runs/first", "data/test", "--features", "new.h5"),
    "export": ("xexport", "onnx", "runs/first", "-o", "new.onnx"),
    "export verify": ("xexport", "verify", "--run", "runs/first"),
    "quantize": ("xexport", "quantize", "--gate", "100", "-o", "new.onnx"),
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
        subprocess.run([BIN / command[0], *command[1:]], cwd=folder, capture_output=True, check=True)
    return folder


def start(folder: Path, command: tuple[str, ...]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [BIN / command[0], *command[1:]],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def stop(process: subprocess.Popen[str], number: signal.Signals) -> str:
    """Stop a command, unless it is done; return what it wrote to stderr."""
    if process.poll() is None:
        # Ctrl-C goes to all processes of a terminal, SIGTERM usually to the one that was started.
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    try:
        process.wait(LIMIT_S + 1)  # a second for the signal to arrive on a busy machine
        return process.communicate(timeout=20)[1]  # its worker, too, ends: after its imports, when its pipe is closed
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_ends_within_five_seconds(project: Path, name: str) -> None:
    command = tuple(part.format(port=free_port()) for part in COMMANDS[name])
    times = random.Random(name)
    for number in MOMENTS:
        remove_outputs(project)
        process = start(project, command)
        moment = times.uniform(0.3, 8)
        with suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        said = stop(process, number)
        assert "Traceback" not in said, said
        assert (process.returncode, "stopped" in said) in ENDS, (moment, said)
        assert half_written(project) == []
    if name not in ENDLESS:
        remove_outputs(project)
        process = start(project, command)
        said = process.communicate(timeout=300)[1]
        assert process.returncode == 0, said


def remove_outputs(project: Path) -> None:
    for path in (*project.glob("new*"), *project.glob("runs/new*")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def half_written(project: Path) -> list[str]:
    """Return what a stopped command must not leave: temporary files, files that cannot be read."""
    left = [str(path) for path in project.rglob("*") if path.name.endswith((".tmp", ".unfinished", ".old", ".held"))]
    for cache in project.glob("*.h5"):
        FeatureCache.open(cache).verify()
    if (model := project / "new.onnx").exists():
        onnx.checker.check_model(model)
    if (split := project / "new-split").exists() and sum(path.is_file() for path in split.rglob("*")) < TRAINING_IMAGES:
        left.append(str(split))
    return left
