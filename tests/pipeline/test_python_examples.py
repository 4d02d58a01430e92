"""The Python that the pages show runs: docs/python.md and the notebook, beside a copy of the drawings."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "data", tmp_path / "data")
    for folder in (tmp_path / "data" / "test").iterdir():  # exports are checked on these: four per class are quick
        for image in sorted(folder.iterdir())[4:]:
            image.unlink()
    return tmp_path


@pytest.mark.slow
def test_the_examples_of_the_page_run_one_after_another(folder: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), flags=re.S)
    checks = "assert X_test.shape == (8, 1280)\nassert [each.path for each in predictions] == images"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join([*blocks, checks])], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "featurizing" not in done.stderr


@pytest.mark.slow
def test_the_notebook_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    notebook = nbformat.read(ROOT / "docs" / "notebooks" / "python.ipynb", as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert printed.count("test accuracy") == 2
    assert "True []" in printed or "True [" in printed
