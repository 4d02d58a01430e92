"""The snippets of docs/runtimes.md run unchanged and give the outputs of onnxruntime."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "runtimes.md").read_text()
TIMEOUT_S = 240
# If another runtime resizes, ties between two grey levels may be rounded differently.
TOLERANCE = 2e-3


def snippet(language: str, containing: str = "") -> str:
    """Return the block of this language that contains a text."""
    [found] = [code for code in re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.S) if containing in code]
    return str(found)


def run(command: list[Any], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def place(exported: Any, tmp_path: Path) -> Path:
    """A folder with the model and an image, as the snippets expect it.

    The image has colours and is not square, so that another order of channels or axes gives other outputs.
    """
    shutil.copy(exported.model, tmp_path)
    rng = np.random.default_rng(6)
    pixels = np.zeros((90, 120, 3), np.uint8) + rng.integers(0, 256, 3).astype(np.uint8)
    for _ in range(3):
        down, across = rng.integers(0, 60, 2)
        pixels[down : down + 40, across : across + 50] = rng.integers(0, 256, 3)
    Image.fromarray(pixels).save(tmp_path / "some.png")
    right = expected(tmp_path)
    for wrong in (pixels[..., ::-1], pixels.reshape(120, 90, 3), np.zeros_like(pixels)):
        assert np.abs(answer(tmp_path, wrong) - right).max() > 10 * TOLERANCE
    return tmp_path


def expected(folder: Path) -> np.ndarray:
    """Return the probabilities that onnxruntime gives for the image."""
    return answer(folder, np.asarray(Image.open(folder / "some.png").convert("RGB")))


def answer(folder: Path, pixels: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["probabilities"], {"image": np.ascontiguousarray(pixels)[None]})[0][0])


def linked_modules(folder: Path, *names: str) -> None:
    """Link npm's packages into a folder, or skip."""
    modules = Path(os.environ.get("XFEAT_NODE_MODULES", ROOT / "node_modules"))
    for name in names:
        if not (modules / name).is_dir():
            pytest.skip(f"needs npm install {name}, and XFEAT_NODE_MODULES=its node_modules")
    (folder / "node_modules").symlink_to(modules.resolve())


def test_the_python_snippet_needs_no_package_of_this_project_and_gives_the_models_outputs(place: Path) -> None:
    code = snippet("python")
    modules = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name)
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert modules == {"json", "numpy", "onnxruntime", "PIL"}
    said, out_of_distribution = run([sys.executable, "-c", code], place).splitlines()
    assert ast.literal_eval(said) == pytest.approx(dict(zip(["bar", "disc"], expected(place), strict=True)))
    assert out_of_distribution in {"out of distribution: True", "out of distribution: False"}


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node")
def test_the_node_snippet_gives_the_outputs_of_onnxruntime(place: Path) -> None:
    linked_modules(place, "onnxruntime-web", "sharp")
    (place / "answer.mjs").write_text(snippet("js"))
    said = run(["node", "answer.mjs"], place).split()[0]
    assert json.loads(said) == pytest.approx(expected(place), abs=TOLERANCE)


def test_the_browser_snippet_gives_the_outputs_of_onnxruntime(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    web = importlib.import_module("export_runtimes.web")
    if web.chromium() is None:
        pytest.skip("needs Chromium")
    linked_modules(place, "onnxruntime-web")
    ask = """
      const file = await (await fetch("some.png")).blob();
      const said = await predict(file).catch((error) => ({ error: String(error) }));
      const answer = said.error ? said : { probabilities: Array.from(said.probabilities.data) };
      await fetch("/result", { method: "POST", body: JSON.stringify(answer) });
    </script>"""
    (place / "page.html").write_text(snippet("html").replace("</script>", ask))
    said = web.in_chromium("/page/page.html", {"page": place})
    assert said["probabilities"] == pytest.approx(expected(place), abs=TOLERANCE)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_cpp_snippet_gives_the_outputs_of_onnxruntime(place: Path) -> None:
    pytest.importorskip("openvino")
    (place / "answer.cpp").write_text(snippet("cpp"))
    Image.open(place / "some.png").save(place / "some.ppm")
    build = snippet("sh", "g++").replace("$(python ", f"$({sys.executable} ")
    said = run(["bash", "-euc", build], place)
    assert [float(word) for word in said.split()] == pytest.approx(expected(place), abs=TOLERANCE)
