"""What the README shows can be typed: its commands run, in its order, in an empty folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
Sessions = tuple[Path, list[tuple[str, list[str], list[str]]]]


def shown_sessions() -> list[tuple[str, list[str]]]:
    """Return each command of this project that the README shows, with the lines of output it shows for it."""
    sessions: list[tuple[str, list[str]]] = []
    for block in re.findall(r"```console\n(.*?)```", README, flags=re.S):
        for line in block.splitlines():
            if line.startswith("$ "):
                sessions.append((line[2:], []))
            else:
                sessions[-1][1].append(line)
    return sessions


def shape(line: str) -> str:
    """Return a line with its figures and run names taken out: those differ between machines and days."""
    line = re.sub(r"\d{8}-\d{6}-[0-9a-f]{2}", "RUN", line)
    return re.sub(r"\s+", " ", re.sub(r"\d[\d.]*(e[-+]\d+)?", "#", line)).strip()


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "XFEAT_WEIGHTS_MIRROR": "http://127.0.0.1:9"}


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Sessions:
    """The folder in which the commands have run, and each with the lines that the README shows and that it printed."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "data", folder / "data")
    ran = []
    for command, shown in shown_sessions():
        if command.startswith("xserve start"):
            continue  # it runs until it is stopped; tests/serve does that
        done = subprocess.run(
            command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        ran.append((command, shown, done.stdout.splitlines()))
    return folder, ran


def test_the_readme_shows_all_four_programs() -> None:
    assert {command.split()[0] for command, _ in shown_sessions()} == {"xfeat", "xhead", "xexport", "xserve"}


def test_the_commands_of_the_readme_say_what_it_shows(sessions: Sessions) -> None:
    _, ran = sessions
    for command, shown, printed in ran:
        assert [shape(line) for line in shown] == [shape(line) for line in printed], command


def test_the_python_example_of_the_readme_runs_on_what_the_commands_left(
    sessions: Sessions, environment: dict[str, str]
) -> None:
    folder, _ = sessions
    examples = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    assert examples
    for example in examples:
        done = subprocess.run(
            [sys.executable, "-c", example], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "test accuracy" in done.stdout
        assert done.stdout.count("data/test/clear/") == len(list((folder / "data" / "test" / "clear").iterdir()))


@pytest.mark.parametrize("name", ["runs/latest/run.json", "model.certificate.json"])
def test_every_key_of_a_written_file_is_documented(sessions: Sessions, name: str) -> None:
    folder, _ = sessions
    page = (ROOT / "docs" / "formats.md").read_text()
    facts = json.loads((folder / name).read_text())
    # What lies below these is named after providers and libraries, or documented as a spec.
    named = {"metadata", "versions", "feature_spec", "head_spec", "train_spec"}
    for key in documented_keys(facts, leave=named):
        assert f"`{key}`" in page, f"{name}: {key}"


def documented_keys(facts: dict[str, Any], *, leave: set[str]) -> set[str]:
    """Return all keys of nested objects, other than those named after a class, a provider or a part of the data."""
    own_names = {"train", "valid", "test", "clear", "opacity", "torch"}
    found: set[str] = set()
    for key, value in facts.items():
        if key not in own_names and "Provider" not in key:
            found.add(key)
        values = value if isinstance(value, list) else [value]
        if key not in leave:
            for part in values:
                found |= documented_keys(part, leave=leave) if isinstance(part, dict) else set()
    return found


def test_the_file_tree_of_the_readme_is_there() -> None:
    tree = re.search(r"```text\n(featurize/.*?)```", README, flags=re.S)
    assert tree
    named = re.findall(r"^(\S+)", tree.group(1), flags=re.M)
    assert len(named) > 8
    assert len(named) == len(set(named))
    for name in named:
        assert (ROOT / name).exists(), name
