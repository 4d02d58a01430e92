"""What the README shows can be typed: its commands run, in its order, in an empty folder."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.readme import README, ROOT, said_in, shown_sessions


def shape(line: str) -> str:
    """Return a line with its figures and run names taken out: those differ between machines and days."""
    line = re.sub(r"\d{8}-\d{6}-[0-9a-f]{2}", "RUN", line)
    return re.sub(r"\s+", " ", re.sub(r"\d[\d.]*(e[-+]\d+)?", "#", line)).strip()


@pytest.mark.slow
def test_the_commands_of_the_readme_run_and_say_what_it_shows(readme_run: Path) -> None:
    sessions, said = shown_sessions(), said_in(readme_run)
    assert {command.split()[0] for command in said} == {"xfeat", "xhead", "xexport", "xserve"}
    for command, shown in sessions:
        if command in said:
            assert [shape(line) for line in shown] == [shape(line) for line in said[command]], command
    assert {command for command, _ in sessions} - set(said) <= {"xserve start"}


@pytest.mark.slow
def test_the_python_example_of_the_readme_runs_on_what_the_commands_left(readme_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(readme_run, tmp_path / "run", symlinks=True)
    examples = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    assert examples
    for example in examples:
        done = subprocess.run([sys.executable, "-c", example], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "test accuracy" in done.stdout
        assert done.stdout.count("data/test/clear/") == len(list((folder / "data" / "test" / "clear").iterdir()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["runs/latest/run.json", "model.certificate.json"])
def test_every_key_of_a_written_file_is_documented(readme_run: Path, name: str) -> None:
    page = (ROOT / "docs" / "formats.md").read_text()
    facts = json.loads((readme_run / name).read_text())
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
