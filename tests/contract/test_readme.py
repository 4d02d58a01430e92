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


def shell_blocks() -> list[str]:
    """Return the console blocks whose commands are this project's own; set-up commands are tried by CI itself."""
    blocks = re.findall(r"```console\n(.*?)```", README, flags=re.S)
    assert blocks, "the README shows no commands"
    return blocks


def test_the_commands_of_the_readme_run(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "data", tmp_path / "data")
    commands = [line[2:] for block in shell_blocks() for line in block.splitlines() if line.startswith("$ x")]
    assert {command.split()[0] for command in commands} == {"xfeat", "xhead", "xexport", "xserve"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "XFEAT_WEIGHTS_MIRROR": "http://127.0.0.1:9"}
    for command in commands:
        if command.startswith("xserve start"):
            continue  # it runs until it is stopped; tests/serve does that
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


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
