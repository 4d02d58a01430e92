"""Disks that are full or cannot be written: one message, nothing lost, nothing half-written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.faults.noise import draw_noise

pytestmark = pytest.mark.slow

# Featurizes with an engine of many features; a first argument limits the size of any file this process writes.
RUN = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from xfeat.featurize.pipeline import compute
from xfeat.featurize.console import Commands
from xfeat.featurize.datasets.layouts import open_dataset
from xfeat.featurize.errors import XfeatError
from xfeat.featurize.pipeline.compute import RunOptions
from xfeat.featurize.pipeline.extract import extract_features
from xfeat.featurize.specs import FeatureSpec, PreprocessSpec
from xfeat.featurize.backbones.weights import Weights

limit, data, output = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
if limit:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
compute.SHARD_ROWS = 4

class Engine:
    name, batch_size = "wide", 4
    def features(self, pixels):
        mean = pixels.reshape(len(pixels), -1).mean(axis=1, dtype=np.float64)
        return (mean[:, None] + np.arange(4096)).astype(np.float32)

spec = FeatureSpec(backbone="efficientnet-b0", weights_sha256="0" * 64, preprocess=PreprocessSpec(size=32))
weights = Weights("efficientnet-b0", Path("w.pth"), "0" * 64)
try:
    done = extract_features(open_dataset(data), spec, weights, output, RunOptions(open_engine=Engine, workers=1))
except XfeatError as error:
    print(type(error).__name__, error)
    sys.exit(1)
print(done.computed, done.reused)
"""


def run(data: Path, output: Path, limit: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUN, str(limit), str(data), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return draw_noise(tmp_path / "data", classes=())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder on a disk of 400 kB; the cache needs 660 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small disk can only be mounted by root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_one_message_and_what_fits_is_kept(data: Path, small_disk: Path, tmp_path: Path) -> None:
    output = small_disk / "features.h5"
    done = run(data, output)
    assert done.returncode == 1
    assert done.stdout.startswith(f"OutputError {small_disk}")
    assert "the disk is full" in done.stdout
    assert "fix:" in done.stdout
    assert not output.exists()
    assert not list(small_disk.rglob("*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    again = run(data, output)
    computed, reused = map(int, again.stdout.split())
    assert computed + reused == 40
    assert reused > 0
    reference = tmp_path / "same" / output.name  # as far from the data: caches store a relative path to it
    reference.parent.mkdir()
    assert run(data, reference).stdout == "40 0\n"
    assert output.stat().st_size == reference.stat().st_size


def test_a_limit_on_file_sizes_is_one_message_and_the_old_cache_stays(data: Path, tmp_path: Path) -> None:
    """Shards fit below the limit, the cache does not."""
    output = tmp_path / "features.h5"
    done = run(data, output, limit=200_000)
    assert (done.returncode, done.stdout.split()[0]) == (1, "OutputError")
    assert not output.exists()
    assert run(data, output).stdout == "0 40\n"
    before = output.read_bytes()
    extra = Image.fromarray(np.zeros((40, 44), np.uint8))
    extra.save(data / "extra.png")
    assert run(data, output, limit=200_000).returncode == 1
    assert output.read_bytes() == before
    assert run(data, output).stdout == "0 41\n"


def test_a_read_only_disk_is_one_message(data: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    done = run(data, small_disk / "features.h5")
    assert (done.returncode, done.stdout.split()[0]) == (1, "OutputError")
    assert "read-only" in done.stdout
    assert "-o" in done.stdout


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_one_message(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    done = run(data, folder / "features.h5")
    assert "no permission to write there" in done.stdout


def test_a_file_where_the_folder_should_be_is_one_message(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run(data, tmp_path / "file" / "features.h5")
    assert (done.returncode, done.stdout.split()[0]) == (1, "OutputError")
