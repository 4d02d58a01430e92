"""The check for machines with a GPU: its stages may fail in any way, and it can be rehearsed on a CPU."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from xfeat.featurize.system.cuda import cuda_driver_present

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
STAGES = """
import ctypes, os, subprocess, sys, time

def ends(report):
    report.at_most("a difference", 0.1, 0.5)
    report.at_most("a difference that is no number", float("nan"), 0.5)
    report.rate("a speed", 90, decode=100, network=200)

def crashes(report):
    report.add("before", "written at once")
    os.abort()

def hangs(report):
    report.add("before", "written at once")
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    time.sleep(600)

def raises(report):
    with report.part("first"):
        raise ValueError("a first\\nreason")
    report.add("second", "still there")
    raise RuntimeError("another reason")

def leaves(report):
    os._exit(7)
"""


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    (tmp_path / "some_stages.py").write_text(STAGES)
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return importlib.import_module("gpu_check")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "limit_s", "shown"),
    [
        ("ends", 60, ["ok a difference", "NO a difference that is no number", "decode 100 (90%)", "ok stage ended"]),
        ("crashes", 60, ["before written at once", "NO stage CRASHED: SIGABRT"]),
        ("hangs", 8, ["before written at once", "NO stage STOPPED at its limit"]),
        ("raises", 60, ["NO first FAILED: ValueError: a first reason", "still there", "another reason", "ok stage"]),
        ("leaves", 60, ["NO stage FAILED: exit code 7"]),
        ("missing", 60, ["FAILED: AttributeError", "missing"]),
    ],
)
def test_a_stage_costs_only_itself_whatever_it_does(
    check: ModuleType, tmp_path: Path, function: str, limit_s: float, shown: list[str]
) -> None:
    stages = {
        function: check.Stage(f"some_stages:{function}", limit_s / 2),
        "next": check.Stage("some_stages:ends", 60),
    }
    check.run_stages(stages, "cpu", tmp_path, 600)
    lines = check.read_lines(tmp_path)
    table = [" ".join(line.split()) for line in check.table(lines).splitlines()]
    for words in shown:
        words = words.replace("ok ", f"ok {function} ", 1).replace("NO ", f"NO {function} ", 1)
        assert any(words in line for line in table), (words, table)
    assert "ok next stage ended" in " ".join(table), "the next stage ran"


def test_without_time_a_stage_is_left_out_and_half_a_line_is_ignored(check: ModuleType, tmp_path: Path) -> None:
    check.run_stages({"ends": check.Stage("some_stages:ends", 60)}, "cpu", tmp_path, 1)
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"stage": "ends", "wh')
    (line,) = check.read_lines(tmp_path)
    assert (line.figure, line.ok) == ("left out: no time", False)


def run(*words: object, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, BENCHMARKS / "gpu_check.py", *words]
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        timeout=timeout_s,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.skipif(cuda_driver_present(), reason="this machine has a GPU")
def test_without_cuda_the_table_says_so() -> None:
    done = run()
    assert done.returncode == 1
    assert "no CUDA" in done.stdout
    assert "no driver" in done.stdout
    assert done.stderr == ""


@pytest.mark.slow
def test_it_can_be_rehearsed_on_a_cpu(tmp_path: Path) -> None:
    """The stages that need no exported model; ``--device cpu`` without names runs all of them in under 3 minutes."""
    done = run("--device", "cpu", "--work", tmp_path, "featurize", "sweep", "memory")
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert done.returncode == 0, done.stdout + done.stderr
    assert {line["stage"] for line in lines} == {"featurize", "sweep", "memory"}
    (speed,) = [line for line in lines if line["what"] == "xfeat featurize, float32"]
    assert "decode" in speed["limit"]
    assert "network" in speed["limit"]
