"""What the README shows can be typed: its commands run, in its order, in an empty folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


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


def test_the_commands_of_the_readme_run_and_say_what_it_shows(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "data", tmp_path / "data")
    sessions = shown_sessions()
    assert {command.split()[0] for command, _ in sessions} == {"xfeat", "xhead", "xexport", "xserve"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "XFEAT_WEIGHTS_MIRROR": "http://127.0.0.1:9"}
    for command, shown in sessions:
        if command.startswith("xserve start"):
            continue  # it runs until it is stopped; tests/serve does that
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert [shape(line) for line in shown] == [shape(line) for line in done.stdout.splitlines()], command


def test_no_placeholder_is_left() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        assert "@@" not in page.read_text(), page


def test_the_file_tree_of_the_readme_is_there() -> None:
    tree = re.search(r"```text\n(featurize/.*?)```", README, flags=re.S)
    assert tree
    named = re.findall(r"^(\S+)", tree.group(1), flags=re.M)
    assert len(named) > 8
    for name in named:
        assert (ROOT / name).exists(), name


def test_links_of_the_documentation_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "data" / "README.md"]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if not target.startswith(("http:", "https:", "mailto:")):
                assert (page.parent / target).exists(), f"{page}: {target}"
