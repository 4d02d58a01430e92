"""The command ``xfeat doctor`` beside drivers and libraries of all kinds, with the real torch and onnxruntime."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from xfeat.featurize.system.cuda import cuda_driver_present

XFEAT = str(Path(sys.executable).with_name("xfeat"))
CARD = {"FAKE_DRIVER": "580.65.06", "FAKE_GPUS": "NVIDIA L4:89"}

# Variables; the exit code; then line: state, and words of what was found and of the fix.
MACHINES: dict[str, tuple[dict[str, str], int, dict[str, tuple[str, str, str]]]] = {
    "driver without a card": (
        {"FAKE_DRIVER": "580.65.06"},
        0,
        {
            "driver": ("ok", "NVIDIA driver 580.65.06 (for CUDA 13.0)", ""),
            "cards": ("note", "none", "CUDA_VISIBLE_DEVICES"),
            "xfeat featurize": ("ok", "onnxruntime on cpu: there is no GPU", ""),
        },
    ),
    "old driver": (
        CARD | {"FAKE_CUDA": "12040", "FAKE_DRIVER": "550.54.15"},
        1,
        {
            "cuda:0": ("ok", "NVIDIA L4, compute capability 8.9", ""),
            "torch": ("FAIL", "a driver for CUDA 13: 580 or newer", "CUDA 12.6 as pytorch.org shows"),
            "onnxruntime": ("FAIL", "550.54.15 (for CUDA 12.4)", "'onnxruntime-gpu[cuda,cudnn]<1.27'"),
            "xserve, xexport": ("note", "the GPU is not used", ""),
        },
    ),
    "old card": (
        CARD | {"FAKE_GPUS": "Tesla P100:60"},
        1,
        {
            "torch": ("FAIL", "Tesla P100, which has 6.0", "CUDA 12.6"),
            "onnxruntime": ("FAIL", "Tesla P100, which has 6.0", "<1.27"),
        },
    ),
    "full card": (CARD | {"FAKE_CONTEXT": "2"}, 1, {"cuda:0": ("FAIL", "out of memory", "stop other processes")}),
    "broken driver": (
        CARD | {"FAKE_INIT": "999"},
        1,
        {"driver": ("FAIL", "CUDA error 999: unknown error", "nvidia-smi")},
    ),
    "crashing driver": (CARD | {"FAKE_CRASH": "1"}, 1, {"driver": ("FAIL", "ended by signal 6", "nvidia-smi")}),
}


def report(*options: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [XFEAT, "doctor", *options],
        cwd=cwd,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def lines_of(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, str]]:
    topics: dict[str, list[dict[str, Any]]] = json.loads(done.stdout)["topics"]
    return {line["name"]: line for lines in topics.values() for line in lines}


@pytest.mark.slow
@pytest.mark.parametrize("machine", MACHINES)
def test_every_driver_and_card_is_told_with_its_fix(tmp_path: Path, driver_folder: Path, machine: str) -> None:
    variables, code, expected = MACHINES[machine]
    done = report("--json", cwd=tmp_path, LD_LIBRARY_PATH=str(driver_folder), **variables)
    assert (done.returncode, done.stderr) == (code, "")
    lines = lines_of(done)
    for name, (state, found, fix) in expected.items():
        assert lines[name]["state"] == state
        assert found in lines[name]["found"]
        assert fix in lines[name]["fix"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("library", ["torch", "onnxruntime", "numba", "PIL"])
def test_a_library_that_cannot_be_imported_is_a_line(tmp_path: Path, library: str) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / f"{library}.py").write_text("raise ImportError('file too short')")
    done = report(cwd=tmp_path, PYTHONPATH=str(tmp_path / "broken"))
    assert (done.returncode, done.stderr) == (1, "")
    assert "file too short" in " ".join(done.stdout.split())  # lines are as wide as the terminal
    assert "ok    cores" in done.stdout


@pytest.mark.slow
def test_a_serving_installation_is_complete_without_torch(tmp_path: Path) -> None:
    """As with the extra ``serve``: torch and what needs it cannot be found."""
    packages = tmp_path / "packages"
    packages.mkdir()
    absent = ("torch*", "numba*", "nvidia*", "__editable__*", "*.pth")
    [installed] = [Path(entry) for entry in sys.path if entry.endswith("site-packages")]
    for entry in installed.iterdir():
        if not any(entry.match(pattern) for pattern in absent):
            (packages / entry.name).symlink_to(entry)
    (packages / "xfeat").symlink_to(Path(__file__).parents[3] / "xfeat")
    code = "import sys; from xfeat.featurize.cli import main; main(['doctor', '--json'])"
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-c", f"import sys; sys.path.append({str(packages)!r}); {code}"],
        cwd=tmp_path / "packages",
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    lines = lines_of(done)
    assert (lines["xfeat featurize"]["state"], lines["xfeat featurize"]["found"]) == ("note", "needs torch")
    assert lines["onnxruntime"]["state"] == "ok"
    assert "torch" not in lines


@pytest.mark.gpu
@pytest.mark.skipif(not cuda_driver_present(), reason="needs an NVIDIA GPU")
def test_a_gpu_is_used_by_both_libraries(tmp_path: Path) -> None:
    lines = lines_of(report("--json", cwd=tmp_path))
    assert "cuda:0" in lines["torch"]["found"]
    assert "cuda:0" in lines["onnxruntime"]["found"]
    assert lines["xfeat featurize"]["found"].startswith("torch on cuda:0")
