"""A project with everything that a file can be exchanged for: two runs, two models, a cross-validation, a sweep."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import MadeOnce
from tests.export.conftest import invoke, make_project
from xfeat.export.cli import main as xexport
from xfeat.featurize.cli import main as xfeat
from xfeat.head.cli import main as xhead
from xfeat.serve.cli import main as xserve

COMMANDS = {"xfeat": xfeat, "xhead": xhead, "xexport": xexport, "xserve": xserve}

Say = Callable[[str], tuple[int, str]]


@pytest.fixture(scope="session")
def original(made_once: MadeOnce) -> Path:
    """The project of the tests of export, in this room's own folder: to be read, and copied."""
    return made_once("project", make_project)


@pytest.fixture
def project(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that a test may change; it is the current folder."""
    folder = Path(shutil.copytree(original, tmp_path / "project", symlinks=True))
    monkeypatch.chdir(folder)
    return folder


def run_line(line: str) -> tuple[int, str]:
    """Run a command line in this process; return its exit code and all that it says."""
    command, *arguments = line.split()
    done = invoke(COMMANDS[command], *arguments)
    return done.exit_code, done.output


@pytest.fixture
def say() -> Say:
    return run_line
