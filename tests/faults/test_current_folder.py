"""No code from the current folder is executed: a trap lies there under every name that could be imported."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import MadeOnce

BIN = Path(sys.executable).parent
MARK = "TRAP_MARK"
TRAP = f"""import os
with open(os.environ[{MARK!r}], "a") as mark:
    mark.write(f"{{__name__}} {{__file__}}\\n")
raise RuntimeError("a module of the current folder was executed")
"""
PACKAGES = ("xfeat", "featurize", "head", "export", "serve")
LITE0 = ("--backbone", "efficientnet-lite0", "--size", "32")


def importable() -> set[str]:
    """Every name that a process of this environment could import: the standard library, and all that is installed."""
    installed = {name.partition("/")[0].removesuffix(".py") for name in importlib.metadata.packages_distributions()}
    return {name for name in {*sys.stdlib_module_names, *installed, *PACKAGES} if name.isidentifier()}


def set_traps(folder: Path, names: set[str]) -> None:
    """Set half of the traps as modules and half as packages; packages go first in a folder."""
    for number, name in enumerate(sorted(names)):
        file = folder / f"{name}.py" if number % 2 else folder / name / "__init__.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(TRAP)


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command among the traps; fail if one has snapped."""
    mark = folder / "snapped.txt"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        cwd=folder,
        env={**environment, MARK: str(mark)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not mark.exists(), f"{command}\n{mark.read_text()}\n{done.stderr}"
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="session")
def trapped(made_once: MadeOnce, lite0_at_32: None) -> Path:
    """Return a folder with images, the features and a run of them, made among the traps."""

    def make(folder: Path) -> None:
        for split in ("train", "valid", "test"):
            for number, name in enumerate(("dark", "light")):
                for row in range(4):
                    file = folder / "data" / split / name / f"{row}.png"
                    file.parent.mkdir(parents=True, exist_ok=True)
                    Image.new("L", (32, 32), 60 + 100 * number + row).save(file)
        set_traps(folder, importable())
        # The trap is one: without the safe path it snaps.
        mark = folder / "snapped.txt"
        subprocess.run(
            [sys.executable, "-c", "import json"], cwd=folder, env={MARK: str(mark)}, capture_output=True, check=False
        )
        mark.unlink()
        run(folder, "xfeat", "featurize", "data", *LITE0, "--decode-in", "processes", "--workers", "2")
        run(folder, "xhead", "train", "--epochs", "1", "--name", "run")

    return made_once("trapped", make)


@pytest.mark.slow
def test_decoding_processes_and_the_drawing_process(trapped: Path) -> None:
    assert (trapped / "runs/run/report.html").is_file()


COMMANDS = {
    "audit": ("xfeat", "audit"),
    "crossval": ("xhead", "crossval", "--epochs", "1", "--folds", "2"),
    "sweep": ("xhead", "sweep", "--trials", "2", "--epochs", "1"),
    "export": ("xexport", "onnx", "runs/run", "--tolerance", "1e-4"),
}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command(trapped: Path, command: str) -> None:
    run(trapped, *COMMANDS[command])


@pytest.mark.slow
def test_workers_of_ray(trapped: Path) -> None:
    pytest.importorskip("ray")
    run(trapped, "xfeat", "featurize", "data", *LITE0, "-o", "ray.h5", "--engine", "ray")


@pytest.mark.slow
def test_python_m(trapped: Path, tmp_path: Path) -> None:
    """``python -m`` itself imports a few modules before it comes to this project, from the current folder."""
    (tmp_path / "probe.py").write_text("import sys; print(*sys.modules)")
    before = subprocess.run(
        [sys.executable, "-m", "probe"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.split()
    set_traps(tmp_path, importable() - {name.partition(".")[0] for name in before} - {"xfeat"})
    assert (tmp_path / "click.py").exists() or (tmp_path / "click").exists()
    run(tmp_path, "python", "-m", "xfeat", "info", str(trapped / "features.h5"))
    settings = (*LITE0, "--decode-in", "processes", "--workers", "1", "-o", str(tmp_path / "again.h5"))
    run(tmp_path, "python", "-m", "xfeat", "featurize", str(trapped / "data"), *settings)


NOTEBOOK = """
import sys
sys.path = [entry for entry in sys.path if entry]  # a kernel has imported these before the folder was changed
import concurrent.futures.process, multiprocessing.popen_spawn_posix, multiprocessing.queues
import numpy as np
from pathlib import Path
from xfeat.featurize.pipeline.reading_processes import read_in_processes
from xfeat.featurize.sources.folder import FolderSource
from xfeat.featurize.specs import FeatureSpec, PreprocessSpec
from xfeat.head.reports.formatting import percent
from xfeat.head.reports.worker import Worker
spec = FeatureSpec(backbone="efficientnet-lite0", weights_sha256="0" * 64, preprocess=PreprocessSpec(size=32))
list(read_in_processes(FolderSource(Path("data")), ["test/dark/0.png"], spec, known=np.array([], "S64"), workers=1))
sys.path.insert(0, "")
images = read_in_processes(FolderSource(Path("data")), ["train/dark/0.png"], spec, known=np.array([], "S64"), workers=1)
assert len(list(images)) == 1
with Worker("json", "socket") as worker:
    assert worker(percent, 0.5) == "50.0 %"
assert sys.path[0] == ""
"""


@pytest.mark.slow
def test_a_notebook_which_has_the_current_folder_on_its_path(trapped: Path) -> None:
    run(trapped, "python", "-c", NOTEBOOK)
