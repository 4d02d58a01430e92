"""A clone in which git wrote the links of ``xfeat/`` as text files, as it does where symbolic links are turned off."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("featurize", "head", "export", "serve")

pytestmark = pytest.mark.skipif(
    shutil.which("git") is None or shutil.which("make") is None, reason="needs git and make"
)


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command as from a terminal: make, which may have started these tests, leaves its marks."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "MFLAGS"}
    return subprocess.run(command, cwd=folder, env=outside, capture_output=True, text=True, check=False)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Clone a repository of the Makefile, what it names, ``xfeat/`` and empty rooms, without symbolic links."""
    original, clone = tmp_path / "original", tmp_path / "clone"
    (original / "xfeat").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", original)
    shutil.copytree(ROOT / "requirements", original / "requirements")
    (original / "pyproject.toml").touch()
    for room in ROOMS:
        (original / room).mkdir()
        (original / room / "__init__.py").touch()
        shutil.copy(ROOT / "xfeat" / room, original / "xfeat", follow_symlinks=False)
    author = ("-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "all"]):
        assert run(original, "git", *command).returncode == 0
    assert run(tmp_path, "git", "clone", "-q", "-c", "core.symlinks=false", str(original), str(clone)).returncode == 0
    assert (clone / "xfeat" / "head").read_text() == "../head"
    return clone


@pytest.mark.parametrize("target", ["demo", "test", "test-slow", "test-all", ".venv/.set-up"])
@pytest.mark.parametrize("set_up", [False, True])
def test_make_says_what_to_do_before_it_sets_anything_up(clone: Path, target: str, set_up: bool) -> None:
    if set_up:
        (clone / ".venv").mkdir()
        (clone / ".venv" / ".set-up").touch()
    before = sorted(clone.rglob("*"))
    done = run(clone, "make", target)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "no symbolic links: xfeat/featurize xfeat/head xfeat/export xfeat/serve" in done.stderr
    assert "git config core.symlinks true && git checkout -- xfeat" in done.stderr
    assert "On Windows, turn on developer mode" in done.stderr
    assert sorted(clone.rglob("*")) == before


def test_what_it_says_fixes_it(clone: Path) -> None:
    (fix,) = re.findall(r"fix: +(git .*)", run(clone, "make", "demo").stderr)
    assert run(clone, "bash", "-euc", fix).returncode == 0
    assert [(clone / "xfeat" / room).is_symlink() for room in ROOMS] == [True] * 4
    assert run(clone, "make", "-n", "test").returncode == 0


def test_one_missing_link_is_named_alone(clone: Path) -> None:
    for room in ROOMS[1:]:
        (clone / "xfeat" / room).unlink()
        (clone / "xfeat" / room).symlink_to(f"../{room}")
    assert "no symbolic links: xfeat/featurize\n" in run(clone, "make", "demo").stderr
