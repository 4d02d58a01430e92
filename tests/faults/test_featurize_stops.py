"""Runs that are killed, stopped or in each other's way, as processes of their own."""

from __future__ import annotations

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

XFEAT = Path(sys.executable).with_name("xfeat")
BACKBONE = ("--backbone", "efficientnet-lite0", "--size", "32")

# Runs extractions in children that are killed. It is a process of its own because children of a process that has
# threads, as this one has, must not be forked.
KILLER = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np
from xfeat.featurize.pipeline import compute
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.datasets.layouts import open_dataset
from xfeat.featurize.pipeline.compute import RunOptions
from xfeat.featurize.pipeline.extract import extract_features
from xfeat.featurize.specs import FeatureSpec, PreprocessSpec
from xfeat.featurize.backbones.weights import Weights

data, folder, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
spec = FeatureSpec(backbone="efficientnet-b0", weights_sha256="0" * 64, preprocess=PreprocessSpec(size=32))
weights = Weights("efficientnet-b0", folder / "w.pth", "0" * 64)
compute.SHARD_ROWS = 4

class Engine:
    name, batch_size = "slow", 3
    def features(self, pixels):
        time.sleep(0.002)
        return pixels.reshape(len(pixels), -1, 3).mean(axis=1, dtype=np.float64).astype(np.float32)

def run(output):
    return extract_features(open_dataset(data), spec, weights, output, RunOptions(open_engine=Engine, workers=2))

def run_in_child(output, kill_after_s):
    child = os.fork()
    if child == 0:
        run(output)
        os._exit(0)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] == 0

started = time.monotonic()
assert run_in_child(folder / "reference.h5", None)
whole_s = time.monotonic() - started
reference = FeatureCache.open(folder / "reference.h5")
random.seed(0)
killed = survived = 0
while killed < kills:
    output = folder / f"{killed}-{survived}.h5"
    while True:
        if run_in_child(output, random.uniform(0, 1.2 * whole_s)):
            survived += 1
            break
        killed += 1
        if output.exists():
            FeatureCache.open(output).verify()
    cache = FeatureCache.open(output)
    cache.verify()
    assert cache.content_sha256 == reference.content_sha256
    assert np.array_equal(cache.features, reference.features)
    assert not output.with_name(output.name + ".parts").exists()
print(killed, survived)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_noise(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def reference(
    lite0_at_32: None, data: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the cache of a run that nobody disturbed."""
    path = tmp_path_factory.mktemp("reference") / "features.h5"
    done = xfeat(environment, data, path)
    assert done.returncode == 0, done.stderr
    return path


def xfeat(environment: dict[str, str], data: Path, output: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [XFEAT, "featurize", data, "-o", output, *BACKBONE, *more]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_run_killed_at_random_moments_gives_the_same_bits(data: Path, tmp_path: Path) -> None:
    """SIGKILL, 40 times, resumed each time, against an undisturbed run."""
    driver = tmp_path / "driver.py"
    driver.write_text(KILLER)
    done = subprocess.run([sys.executable, driver, data, tmp_path, "40"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    killed, survived = map(int, done.stdout.split())
    assert killed >= 40
    assert survived >= 1


@pytest.mark.slow
def test_the_command_killed_and_resumed_gives_the_same_bits(
    data: Path, environment: dict[str, str], reference: Path, tmp_path: Path
) -> None:
    """The same with the real network: its results must not depend on how images are batched."""
    output = tmp_path / "features.h5"
    parts = tmp_path / "features.h5.parts"
    driver = tmp_path / "driver.py"
    driver.write_text(
        "import sys, time\n"
        "from xfeat.featurize.pipeline import compute\n"
        "from xfeat.featurize.cli import main\n"
        "from xfeat.featurize.engines.onnx_engine import OnnxEngine\n"
        "compute.SHARD_ROWS = 5\n"
        "run = OnnxEngine.features\n"
        "OnnxEngine.features = lambda engine, pixels: (time.sleep(0.2), run(engine, pixels))[1]\n"
        "main(sys.argv[1:])\n"
    )
    command = [sys.executable, driver, "featurize", data, "-o", output, *BACKBONE, "--batch-size", "8"]
    for shards in (1, 3):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        _wait_until(lambda shards=shards: len(list(parts.glob("*.npz"))) >= shards, process)
        process.kill()
        process.wait()
        assert not output.exists()
    done = xfeat(environment, data, output, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["reused"] >= 15
    assert told["computed"] + told["reused"] == 40
    assert np.array_equal(features_of(output), features_of(reference))
    assert not parts.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop", "more"),
    [(signal.SIGINT, ()), (signal.SIGTERM, ()), (signal.SIGINT, ("--force",))],
    ids=["Ctrl-C", "SIGTERM", "Ctrl-C with --force"],
)
def test_a_stopped_command_keeps_its_shard_and_says_how_to_go_on(
    data: Path,
    environment: dict[str, str],
    reference: Path,
    tmp_path: Path,
    stop: signal.Signals,
    more: tuple[str, ...],
) -> None:
    output = tmp_path / "features.h5"
    driver = tmp_path / "driver.py"
    driver.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from xfeat.featurize.cli import main\n"
        "from xfeat.featurize.engines.onnx_engine import OnnxEngine\n"
        "run = OnnxEngine.features\n"
        "def slow(engine, pixels):\n"
        "    features = run(engine, pixels)\n"
        f"    Path({str(tmp_path / 'running')!r}).touch()\n"
        "    time.sleep(0.3)\n"
        "    return features\n"
        "OnnxEngine.features = slow\n"
        "main(sys.argv[1:])\n"
    )
    command = [sys.executable, driver, "featurize", data, "-o", output, *BACKBONE, *more]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    _wait_until((tmp_path / "running").exists, process)
    time.sleep(0.5)
    process.send_signal(stop)
    said, problem = process.communicate(timeout=60)
    assert process.returncode == 130, problem
    assert said == ""
    assert "images are finished and stored in" in problem
    assert "run the same command again: it resumes" in problem
    assert "Traceback" not in problem
    assert not output.exists()
    kept = len(list((tmp_path / "features.h5.parts").glob("*.npz")))
    assert kept == 1
    done = xfeat(environment, data, output, "--json", *more)
    assert json.loads(done.stdout)["reused"] > 0
    assert np.array_equal(features_of(output), features_of(reference))


@pytest.mark.slow
def test_two_writers_of_one_cache_do_not_meet(data: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """The second gets a message; the lock of a process that was killed is free."""
    output = tmp_path / "features.h5"
    driver = tmp_path / "driver.py"
    driver.write_text(
        "import sys, time\n"
        "from xfeat.featurize.cli import main\n"
        "from xfeat.featurize.engines.onnx_engine import OnnxEngine\n"
        "OnnxEngine.features = lambda *_: (print('computing', flush=True), time.sleep(600))\n"
        "main(sys.argv[1:])\n"
    )
    command = [sys.executable, driver, "featurize", data, "-o", output, *BACKBONE]
    holder = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "computing\n"
    try:
        done = xfeat(environment, data, output)
        assert done.returncode == 1
        assert "another process is writing this cache" in done.stderr
        assert "fix" in done.stderr
        assert "Traceback" not in done.stderr
    finally:
        holder.kill()
        holder.communicate()
    assert xfeat(environment, data, output).returncode == 0


def _wait_until(condition: object, process: subprocess.Popen[str], timeout_s: float = 60.0) -> None:
    limit = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert process.poll() is None, "it ended before it could be stopped"
        assert time.monotonic() < limit, "it never came so far"
        time.sleep(0.01)
