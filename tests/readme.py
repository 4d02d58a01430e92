"""The commands that the README shows, and one run of them that several files of tests look at."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
_SAID = "said.json"


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


def run_shown(folder: Path) -> None:
    """Run the commands in their order beside a copy of the drawings, with no weights but those of Lite0."""
    shutil.copytree(ROOT / "data", folder / "data")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    no_weights = {"XFEAT_WEIGHTS_MIRROR": "http://127.0.0.1:9", "TORCH_HOME": str(folder / "torch")}
    said = {}
    for command, _ in shown_sessions():
        if command.startswith("xserve start"):
            continue  # it runs until it is stopped; tests/serve does that
        done = subprocess.run(
            command,
            shell=True,
            cwd=folder,
            env={**os.environ, "PATH": path, **no_weights},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        said[command] = done.stdout.splitlines()
    (folder / _SAID).write_text(json.dumps(said))


def said_in(folder: Path) -> dict[str, list[str]]:
    """Return the lines that each command of :func:`run_shown` printed."""
    said = json.loads((folder / _SAID).read_text())
    assert isinstance(said, dict)
    return said
