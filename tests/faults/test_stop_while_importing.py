"""A signal during an import: the exception waits until the module is complete."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MODULE = """
import os, signal, time
os.kill(os.getpid(), signal.{number})
time.sleep(0.3)
complete = True
"""

PROGRAM = """
import sys, time
from xfeat.featurize.system.stop_signals import stop_on_signals
sys.path.insert(0, {folder!r})
try:
    with stop_on_signals():
        import interrupted
        assert interrupted.complete
        time.sleep(2)
except KeyboardInterrupt:
    print("stopped after", [name for name in sys.modules if name == "interrupted"])
"""


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_an_import_is_not_interrupted(tmp_path: Path, number: str) -> None:
    (tmp_path / "interrupted.py").write_text(MODULE.format(number=number))
    program = PROGRAM.format(folder=str(tmp_path))
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "stopped after ['interrupted']\n", "")
