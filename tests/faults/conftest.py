"""Runs programs on a file system that lacks something: tests/faults/file_system.c, compiled and preloaded."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("file_system.c")


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the shim; skip the test where that is impossible."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler: the file systems of these tests are a C library")
    library = tmp_path_factory.mktemp("shim") / "file_system.so"
    command = [compiler, "-shared", "-fPIC", "-Wall", "-Wextra", "-o", library, SOURCE, "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the C compiler cannot build for LD_PRELOAD: {done.stderr.splitlines()[:1]}")
    return library


def lacking(library: Path, root: Path, **lacks: int | str) -> dict[str, str]:
    """Return an environment in which calls below ``root`` fail; see file_system.c for the names, without ``SHIM_``."""
    variables = {f"SHIM_{name}": str(value) for name, value in lacks.items()}
    return {**os.environ, "LD_PRELOAD": str(library), "SHIM_ROOT": str(root), "ORT_DISABLE_TELEMETRY": "1", **variables}
