"""A run on a cluster that is stopped or killed, driver, actors and all, as processes of their own."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.faults.noise import draw_noise, features_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install 'xfeat-onnx[ray]'"
    ),
]

XFEAT = Path(sys.executable).with_name("xfeat")
BACKBONE = ("--backbone", "efficientnet-lite0", "--size", "32")

# Runs the command with small chunks and shards, and waits after each chunk, so that there is something to stop.
SLOWLY = """
import sys, time
from xfeat.featurize.pipeline import compute
from xfeat.featurize.cli import main
from xfeat.featurize.cluster import connection as ray_cluster; from xfeat.featurize.cluster import engine as ray_engine

compute.SHARD_ROWS = 8
ray_engine._CHUNK = 8
ray_cluster._THREADS = 1
record = compute._Run.record
def slowly(run, outcomes):
    record(run, outcomes)
    time.sleep(0.5)
compute._Run.record = slowly
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_noise(tmp_path_factory.mktemp("data"), 60, classes=())


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """Return an environment with no cluster."""
    own = dict(os.environ)
    own.pop("RAY_ADDRESS", None)
    return own


@pytest.fixture(scope="module")
def reference(
    lite0_at_32: None, data: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> np.ndarray:
    """Return the features of a run on this machine that nobody disturbed."""
    path = tmp_path_factory.mktemp("reference") / "features.h5"
    run_here(data, path, environment)
    return features_of(path)


def run_here(data: Path, output: Path, environment: dict[str, str]) -> dict[str, object]:
    command = [XFEAT, "featurize", data, "-o", output, *BACKBONE, "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told: dict[str, object] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "SIGKILL to everything"])
def test_a_stopped_run_on_a_cluster_resumes(
    data: Path, environment: dict[str, str], reference: np.ndarray, tmp_path: Path, stop: signal.Signals
) -> None:
    """Ctrl-C reaches all processes of a terminal, and so does the kill. The next run reuses what was finished."""
    output = tmp_path / "features.h5"
    driver = tmp_path / "driver.py"
    driver.write_text(SLOWLY)
    command = [sys.executable, driver, "featurize", data, "-o", output, "--engine", "ray", "--workers", "2", *BACKBONE]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    limit = time.monotonic() + 240
    while len(list(tmp_path.glob("features.h5.parts/*.npz"))) < 2:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < limit, "it never came so far"
        time.sleep(0.05)
    cluster = descendants(process.pid)
    assert any("raylet" in name for name in cluster.values())
    os.killpg(process.pid, stop)
    said, problem = process.communicate(timeout=60)
    if stop == signal.SIGINT:
        assert process.returncode == 130, problem
        assert said == ""
        lines = [line for line in problem.splitlines() if not line.startswith("featurizing: ")]
        assert lines[:2] == ["layout: no classes", "60 images to read with ray"]
        assert "actors with 1 CPUs each" in lines[2]
        assert "images are finished and stored" in lines[3]
        assert lines[4:] == ["  fix:      run the same command again: it resumes"], "Ray printed something"
    assert not output.exists()
    assert_gone(cluster)
    told = run_here(data, output, environment)
    assert int(str(told["reused"])) >= 16
    assert int(str(told["computed"])) + int(str(told["reused"])) == 60
    assert np.array_equal(features_of(output), reference)


def descendants(process: int) -> dict[int, str]:
    """Return the command lines of all processes below one."""
    children: dict[int, list[int]] = {}
    names: dict[int, str] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                names[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
            children.setdefault(parent, []).append(int(folder.name))
    found: dict[int, str] = {}
    waiting = [process]
    while waiting:
        for child in children.get(waiting.pop(), []):
            found[child] = names[child]
            waiting.append(child)
    return found


def assert_gone(processes: dict[int, str], timeout_s: float = 60.0) -> None:
    """Ray's processes notice that their driver is gone, and end."""
    limit = time.monotonic() + timeout_s
    while left := [name for process, name in processes.items() if _is_alive(process)]:
        assert time.monotonic() < limit, left
        time.sleep(0.1)


def _is_alive(process: int) -> bool:
    try:
        return (Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
