"""The project that is changed, and how many changes are tried: always the same few, or as many others as asked for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.conftest import MadeOnce
from tests.fuzz.child import Child
from tests.fuzz.project import make_project

CASES = int(os.environ.get("FUZZ_CASES", "20"))
FUZZ = settings(
    derandomize="FUZZ_CASES" not in os.environ,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="session")
def project(made_once: MadeOnce) -> Path:
    """Return the project, which nothing changes."""
    return made_once("fuzz", make_project)


@pytest.fixture(scope="module")
def child(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    """Return a process that runs commands in a copy of the project."""
    folder = tmp_path_factory.mktemp("fuzz") / "project"
    shutil.copytree(project, folder, symlinks=True)
    with Child(folder) as started:
        yield started
