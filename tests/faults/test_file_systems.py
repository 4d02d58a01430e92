"""File systems that lack something: everything works, with one warning that says what is lost."""

from __future__ import annotations

import ast
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.conftest import lacking
from tests.faults.noise import draw_noise

BIN = Path(sys.executable).parent

# Writes and replaces everything this project writes, reads it again, and prints what it warned of.
USER = """
import json, logging, os, sys
from pathlib import Path
import numpy as np
from tests.caches import write_made_up
from xfeat.export.publish import publish
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.cli import main as xfeat
from xfeat.featurize.system.atomic import replacing
from xfeat.featurize.system.locks import locked
from xfeat.head.runs.reader import latest_run
from xfeat.head.runs.writer import RunWriter
from xfeat.head.sweep.results import SweepFolder

warnings = []
class Listing(logging.Handler):
    def emit(self, record):
        if record.levelno >= logging.WARNING:
            warnings.append(record.getMessage())
logging.getLogger("xfeat").addHandler(Listing())

root = Path(sys.argv[1])
features = np.arange(24, dtype=np.float32).reshape(8, 3)
columns = {"label": [0, 1] * 4, "split": [0] * 8, "path": [f"{n}.png" for n in range(8)]}
for content in ("earlier", "later"):
    with replacing(root / "file") as partial:
        partial.write_text(content)
    with locked(root / ".lock", "busy", of=root / "file"):
        cache = write_made_up(root / "features.h5", features + len(content), columns, ("a", "b"))
    assert np.array_equal(cache.features, features + len(content))
    cache.verify()
    with RunWriter(root / "runs", content) as writer:
        writer.save_json("run.json", {"created": content})
    with publish([root / "model.onnx", root / "model.certificate.json"]) as folder:
        for name in ("model.onnx", "model.certificate.json"):
            (folder / name).write_text(content)
    sweep = SweepFolder(root / "sweep")
    with sweep.locked():
        sweep.begin({"identity": 1})
assert (root / "file").read_text() == (root / "model.onnx").read_text() == "later"
assert latest_run(root / "runs").name == "later"
xfeat(["split", str(root / "data"), str(root / "split")], standalone_mode=False)
assert len(list((root / "split").rglob("*.png"))) == 40
left = [str(p) for p in root.rglob("*") if p.suffix in (".tmp", ".old", ".unfinished", ".held", ".stale")]
print(json.dumps([warnings, left]))
"""

# What is missing, with the error numbers that mounts are known to answer with, and what the warning calls it.
KINDS = [
    ("FLOCK", ["ENOSYS", "EOPNOTSUPP", "ENOLCK", "EPERM", "EINVAL"], "no locks"),
    ("FSYNC", ["ENOSYS", "EOPNOTSUPP", "EINVAL"], "no fsync "),
    ("FSYNC_FOLDER", ["ENOSYS", "EOPNOTSUPP", "EINVAL", "EPERM", "EACCES", "EBADF", "EISDIR"], "no fsync of folders"),
    ("CHMOD", ["ENOSYS", "EOPNOTSUPP", "EPERM", "EINVAL"], ""),
    ("UTIME", ["ENOSYS", "EOPNOTSUPP", "EPERM", "EACCES", "EINVAL"], "no way to set the times"),
    ("LINK", ["ENOSYS", "EOPNOTSUPP", "EPERM", "EMLINK", "EXDEV"], ""),
    ("SYMLINK", ["ENOSYS", "EOPNOTSUPP", "EPERM", "EINVAL", "EACCES"], "no symbolic links"),
    ("MMAP_SHARED", ["ENODEV", "EINVAL", "ENOSYS", "EACCES", "EPERM"], "no mapped files"),
    ("RENAME_OVER", ["EEXIST", "EPERM", "EACCES", "EBUSY", "ETXTBSY", "EINVAL"], "no rename over a file"),
]
ROWS = [pytest.param(name, number, said, id=f"{name}-{number}") for name, all_, said in KINDS for number in all_]
QUICK = [row for row in ROWS if row.id in ("FLOCK-ENOLCK", "FSYNC_FOLDER-EINVAL", "RENAME_OVER-EBUSY")]
REST = [pytest.param(*row.values, id=row.id, marks=pytest.mark.slow) for row in ROWS if row not in QUICK]


def start_user(root: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", USER, str(root)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


def run_user(root: Path, environment: dict[str, str]) -> tuple[list[str], list[str]]:
    done = start_user(root, environment)
    assert done.returncode == 0, done.stderr
    warnings, left = json.loads(done.stdout.splitlines()[-1])
    return [line for line in warnings if "the file system of" in line], left


@pytest.mark.parametrize(("name", "number", "said"), QUICK + REST)
def test_what_a_file_system_lacks_is_done_without(
    library: Path, tmp_path: Path, name: str, number: str, said: str
) -> None:
    draw_noise(tmp_path / "data")
    code = getattr(errno, number)
    warnings, left = run_user(tmp_path, lacking(library, tmp_path, **{name: code}))
    assert len(warnings) == bool(said), warnings
    assert all(said in line and os.strerror(code) in line for line in warnings)
    assert not left


def test_a_file_system_without_anything(library: Path, tmp_path: Path) -> None:
    draw_noise(tmp_path / "data")
    lacks = {name: getattr(errno, numbers[0]) for name, numbers, _ in KINDS}
    warnings, left = run_user(tmp_path, lacking(library, tmp_path, **lacks))
    assert len(warnings) == sum(bool(said) for _, _, said in KINDS), warnings
    assert not left


def test_the_doctor_names_what_a_file_system_lacks(library: Path, tmp_path: Path) -> None:
    lacks = {name: getattr(errno, numbers[0]) for name, numbers, said in KINDS if said}
    code = "from xfeat.featurize.doctor.machine import file_system as f; print([tuple(line[1:3]) for line in f()])"
    for variables, states in ((lacks, {"ok", "note"}), ({"FSYNC": errno.EIO}, {"ok", "FAIL"})):
        done = subprocess.check_output(
            [sys.executable, "-c", code], cwd=tmp_path, env=lacking(library, tmp_path, **variables), text=True
        )
        found = dict(reversed(line) for line in ast.literal_eval(done))
        assert set(found.values()) == states
        said = [words for name, _, words in KINDS if name in variables and words]
        assert "FAIL" in states or all(any(words in line for line in found) for words in said), done
    assert list(tmp_path.iterdir()) == []


def test_a_failing_disk_is_no_file_system_without_a_service(library: Path, tmp_path: Path) -> None:
    """A disk that reports an error on fsync has lost data; going on would be silent and wrong."""
    draw_noise(tmp_path / "data")
    done = start_user(tmp_path, lacking(library, tmp_path, FSYNC=errno.EIO))
    assert done.returncode == 1
    assert "OutputError" in done.stderr
    assert "the disk reports an error" in done.stderr


@pytest.mark.slow
def test_the_commands_on_a_file_system_without_anything(library: Path, tmp_path: Path) -> None:
    draw_noise(tmp_path / "data")
    lacks = {name: getattr(errno, numbers[-1]) for name, numbers, _ in KINDS}
    environment = lacking(library, tmp_path, **lacks)
    for command in (
        ["xfeat", "featurize", "data", "--backbone", "efficientnet-lite0", "--size", "32"],
        ["xfeat", "verify", "features.h5"],
        ["xhead", "train", "--epochs", "3"],
        ["xexport", "onnx"],
        ["xserve", "predict", "data"],
    ):
        done = subprocess.run(
            [BIN / command[0], *command[1:]],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_file_that_is_not_read_in_time_is_skipped(library: Path, tmp_path: Path) -> None:
    """The run ends although the read never does."""
    draw_noise(tmp_path / "data", 6)
    done = featurize_stalled(library, tmp_path, "data/covid/002.png")
    assert done.returncode == 0, done.stderr
    assert "covid/002.png: not read within 3 s" in done.stdout + done.stderr
    assert "5 images" in done.stdout


@pytest.mark.slow
def test_a_disk_that_does_not_answer_ends_the_run(library: Path, tmp_path: Path) -> None:
    draw_noise(tmp_path / "data", 40)
    done = featurize_stalled(library, tmp_path, "data/normal")
    assert done.returncode == 1
    assert "8 files in a row were not read within 3 s" in done.stderr


# The command, with less patience for reads.
IMPATIENT = """
import sys
from xfeat.featurize.system import time_limit
limited = time_limit.limited
time_limit.limited = lambda limit_s, what, **more: limited(3 if what == "read" else limit_s, what, **more)
from xfeat.featurize.cli import main
main(sys.argv[1:])
"""


def featurize_stalled(library: Path, folder: Path, stalled: str) -> subprocess.CompletedProcess[str]:
    environment = lacking(library, folder, STALL=str(folder / stalled), STALL_S=3600)
    settings = ["--backbone", "efficientnet-lite0", "--size", "32", "--decode-in", "threads", "--workers", "8"]
    command = [sys.executable, "-c", IMPATIENT, "featurize", "data", *settings]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=100
    )
