"""What is said while a bar runs on a terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("no pseudo-terminals there", allow_module_level=True)

import pty

SCRIPT = """
import logging
from xfeat.featurize.console import _start_logging, progress_bar, say

_start_logging()
with progress_bar("sweep", "trials") as advance:
    advance(1, 3)
    say("best so far")
    logging.getLogger("xfeat.head").warning("diverged")
    advance(2, 3)
"""


def test_lines_that_come_while_a_bar_runs_begin_where_the_bar_was_erased(tmp_path: Path) -> None:
    """Reference: what a terminal gets; ESC [ 2 K erases a line."""
    terminal, end = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stderr=end, env=environment, cwd=tmp_path)
    os.close(end)
    shown = b""
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # so Linux says that the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(terminal)
    assert process.wait(timeout=60) == 0, shown
    text = shown.decode()
    for line in ("best so far\r\n", "warning: diverged\r\n"):
        before = text[: text.index(line)]
        assert before.endswith(("\r\x1b[2K", "\n")), repr(before[-80:])
