"""The table of runtimes distinguishes what is not installed from what fails."""

from __future__ import annotations

import importlib
import operator
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def conformance(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark, as a module."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module("export_conformance")
    for name in [name for name in sys.modules if name.startswith(("export_conformance", "export_runtimes"))]:
        del sys.modules[name]


def test_a_row_shows_the_difference_of_a_runtime_its_error_or_how_to_install_it(
    conformance: Any, exported: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conformance, "BATCHES", (2,))
    monkeypatch.setattr(conformance, "in_own_process", lambda run, path, feeds: run(path, feeds))
    runtimes = [
        conformance.Runtime("here", lambda: "1.0", "", conformance.native.by_onnxruntime),
        conformance.Runtime("broken", lambda: "2.0", "", operator.truediv),
        conformance.Runtime("absent", lambda: None, "pip install absent", operator.truediv),
    ]
    heads, _, *rows = conformance.table(exported.model, exported.data, runtimes)
    assert heads == "| runtime | model | batch 2 | original size |"
    assert rows[0] == "| here 1.0 | core | 0.0e+00 | – |"
    assert rows[1] == "| here 1.0 | full | 0.0e+00 | 0.0e+00 |"
    assert rows[3].startswith("| broken 2.0 | full | fails: unsupported operand type(s) for /")
    assert rows[4:] == ["| absent | | not installed: `pip install absent` | |"]
    assert {row.count("|") for row in rows} == {5}


def test_a_runtime_that_exits_is_an_error(conformance: Any) -> None:
    """/bin/false replaces the process before there is a result."""
    assert conformance.in_own_process(operator.add, [1], [2]) == [1, 2]
    with pytest.raises(RuntimeError, match="the process exits"):
        conformance.in_own_process(os.execv, shutil.which("false"), ["false"])


def test_a_converter_that_runs_too_long_is_killed(
    conformance: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conformance.native, "CONVERSION_TIMEOUT_S", 0.2)
    with pytest.raises(TimeoutError, match="sleep does not finish"):
        conformance.native.convert(["sleep", "60"], tmp_path)


def test_the_last_line_of_a_failed_converter_is_the_reason(conformance: Any, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="sh: no such layer"):
        conformance.native.convert(["sh", "-c", "echo reading; echo no such layer; exit 3"], tmp_path)


def test_the_error_line_of_a_converter_is_the_reason_not_the_lines_below(conformance: Any, tmp_path: Path) -> None:
    script = "echo reading; echo 'ValueError: no such layer'; echo arguments; exit 1"
    with pytest.raises(RuntimeError, match=r"^sh: ValueError: no such layer$"):
        conformance.native.convert(["sh", "-c", script], tmp_path)


def test_litert_needs_its_converter(conformance: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conformance, "package", lambda name: "2.0")
    monkeypatch.setenv("XFEAT_ONNX2TF", str(tmp_path / "onnx2tf"))
    assert conformance.litert_version() is None
    (tmp_path / "onnx2tf").touch()
    assert conformance.litert_version() == "2.0"


def test_every_runtime_has_a_command_that_installs_it(conformance: Any) -> None:
    assert all(runtime.install.split()[0] in {"pip", "apt", "npm"} for runtime in conformance.RUNTIMES)
