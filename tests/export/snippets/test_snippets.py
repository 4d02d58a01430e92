"""``xexport snippet``: each program predicts what ``xserve predict`` does on every kind of file, or refuses it."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest

from tests.conftest import MadeOnce
from tests.export.snippets.pictures import FILES, MAY_REFUSE, write_all
from xfeat.export.build.assemble import write_variants
from xfeat.export.model.file import open_model
from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.inference.results import Prediction

ROOT = Path(__file__).parents[3]
TIMEOUT_S = 240
# Other runtimes resize in floating point, in another order: ties between two grey levels are broken differently.
TOLERANCE = {"python": 1e-5, "js": 1e-2, "cpp": 1e-2}
NAMES = ("b\"a'r\n\\ ${x} %s ??/ §file§", "Käse 中")  # the hardest that a folder or a table can have
MODELS: dict[str, dict[str, Any]] = {
    "threshold": {"positive": NAMES[0], "threshold": 0.7},
    "12 bits": {"preprocess": {"grey_bits": 12}},
    "cut": {"preprocess": {"crop": 0.12, "resize": "crop", "interpolation": "bicubic"}, "ood_threshold": None},
}


@pytest.fixture(scope="session")
def models(exported: Any, traced: onnx.ModelProto, made_once: MadeOnce) -> Path:
    """The drawn project's model with other class names, thresholds and preprocessing."""
    stored = open_model(exported.model).metadata

    def make(folder: Path) -> None:
        for name, given in MODELS.items():
            changes = dict(given)
            preprocess = replace(stored.feature_spec.preprocess, **changes.pop("preprocess", {}))
            spec = replace(stored.feature_spec, preprocess=preprocess)
            metadata = replace(stored, class_names=NAMES, feature_spec=spec, **changes)
            files = {"full": folder / f"{name}.onnx", "core": folder / f"{name}.core.onnx"}
            write_variants(traced, metadata, files)
        write_all(folder)

    return made_once("snippets", make)


def snippet(xexport: Callable[..., Any], model: Path, language: str) -> str:
    done = xexport("snippet", model, "--lang", language)
    assert done.exit_code == 0, done.output
    return str(done.stdout)


def command_of(language: str, text: str, model: Path, folder: Path) -> list[Any]:
    """Write the program, build it if necessary, and return its command; or skip, saying what is missing."""
    shutil.copy(model, folder)
    if language == "python":
        (folder / "predict.py").write_text(text)
        return [sys.executable, folder / "predict.py"]
    if language == "js":
        modules = Path(os.environ.get("XFEAT_NODE_MODULES", ROOT / "node_modules"))
        if shutil.which("node") is None or not all((modules / name).is_dir() for name in ("onnxruntime-web", "sharp")):
            pytest.skip("needs Node, npm install onnxruntime-web sharp, and XFEAT_NODE_MODULES=its node_modules")
        (folder / "node_modules").symlink_to(modules.resolve())
        (folder / "predict.mjs").write_text(text)
        return ["node", folder / "predict.mjs"]
    return [*built(language, text, folder), folder / model.name]


def built(engine: str, text: str, folder: Path) -> list[Any]:
    """Compile the C++ program with onnxruntime, if its headers are there, or with OpenVINO."""
    (folder / "predict.cpp").write_text(text)
    if (
        shutil.which("g++") is None
        or not Path("/usr/include/png.h").exists()
        or not Path("/usr/include/jpeglib.h").exists()
    ):
        pytest.skip("needs g++, libpng-dev and libjpeg-dev")
    if engine == "cpp with OpenVINO":
        if importlib.util.find_spec("openvino") is None:
            pytest.skip("needs pip install openvino")
        import openvino

        home = Path(openvino.__file__).parent
        [library] = (home / "libs").glob("libopenvino.so.*")
        options = ["-DWITH_OPENVINO", f"-I{home / 'include'}", library, f"-Wl,-rpath,{home / 'libs'}"]
    else:
        headers = Path(os.environ.get("XFEAT_ONNXRUNTIME_HEADERS", "/usr/include/onnxruntime"))
        if not (headers / "onnxruntime_cxx_api.h").exists():
            pytest.skip("needs libonnxruntime-dev, or XFEAT_ONNXRUNTIME_HEADERS=a folder with its headers")
        [library] = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
        (folder / "libonnxruntime.so.1").symlink_to(library)
        options = [f"-I{headers}", folder / "libonnxruntime.so.1", f"-Wl,-rpath,{folder}"]
    build = ["g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Wno-unused-parameter", folder / "predict.cpp"]
    done = subprocess.run(
        [*build, "-o", folder / "predict", *options, "-lpng", "-ljpeg"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "predict.cpp" not in done.stderr, "a warning"
    return [folder / "predict"]


def refuses_another_model(command: list[Any], model: Path, other: Path, folder: Path) -> None:
    for wrong in (other, model.with_suffix(".core.onnx"), None):
        (folder / model.name).unlink()
        if wrong:
            shutil.copy(wrong, folder / model.name)
        done = subprocess.run([*command, folder / "none.png"], capture_output=True, text=True, check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
        assert ("xexport snippet writes it anew" if wrong else model.name) in done.stderr
    shutil.copy(model, folder)


def compared(language: str, command: list[Any], model: Path, files: list[Path]) -> None:
    """Compare a program's answers with the predictor's."""
    done = subprocess.run([*command, *files], capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    refused = {path.name: line for line in done.stderr.splitlines() for path in files if line.startswith(f"{path}: ")}
    assert len(answers) + len(refused) == len(files), done.stderr
    assert done.returncode == (1 if refused else 0)
    predictor = Predictor(model, device="cpu")
    waiting = iter(answers)
    for path, right in zip(files, predictor.predict_bytes([file.read_bytes() for file in files]), strict=True):
        if path.name in refused:
            assert path.name in MAY_REFUSE[language] or not isinstance(right, Prediction), refused[path.name]
            continue
        found = next(waiting)
        assert isinstance(right, Prediction), f"{path.name}: xserve says {right}, the program {found}"
        tolerance = TOLERANCE[language]
        assert found["probabilities"] == pytest.approx(right.probabilities, abs=tolerance), path.name
        near = predictor.metadata.threshold or 0.5
        if all(abs(share - near) > tolerance for share in right.probabilities.values()):
            assert found["label"] == right.label, path.name
        assert found["ood"] == pytest.approx(right.ood, rel=0.02), path.name
        assert found["in_distribution"] == right.in_distribution or abs(right.ood - (right.ood_threshold or 0)) < 0.1


# A C++ program takes seconds to build. The model itself cuts, so only Python's program differs where it does.
PROGRAMS = [
    *(("python", name) for name in MODELS),
    ("js", "12 bits"),
    ("js", "threshold"),
    ("cpp with onnxruntime", "threshold"),
    ("cpp with OpenVINO", "12 bits"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "name"), PROGRAMS)
def test_a_program_predicts_what_xserve_does_or_refuses(
    xexport: Callable[..., Any], models: Path, tmp_path: Path, engine: str, name: str
) -> None:
    language, model = engine.split()[0], models / f"{name}.onnx"
    command = command_of(engine, snippet(xexport, model, language), model, tmp_path)
    files = [models / file for file in FILES]
    refuses_another_model(command, model, models / ("cut.onnx" if name == "threshold" else "threshold.onnx"), tmp_path)
    if name == "12 bits" and language == "python":  # Pillow keeps 8 bits of 16-bit colours
        files = [file for file in files if file.name not in ("rgb16.png", "rgba16.png", "la16.png", "rgb16-key.png")]
    compared(language, command, model, files)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_python_program_prepares_images_for_a_core_model(
    xexport: Callable[..., Any], models: Path, tmp_path: Path, name: str
) -> None:
    model = models / f"{name}.core.onnx"
    text = snippet(xexport, model, "python")
    (tmp_path / "predict.py").write_text(text)
    shutil.copy(model, tmp_path)
    paths = [models / file for file in ("rgb.png", "grey16.png", "exif6.jpg", "ink.png", "wide.png")]
    done = subprocess.run(
        [sys.executable, tmp_path / "predict.py", *paths], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    results = Predictor(model, device="cpu").predict_paths(paths)
    for line, right in zip(done.stdout.splitlines(), results, strict=True):
        assert json.loads(line)["probabilities"] == pytest.approx(right.probabilities, abs=1e-5)
        assert json.loads(line)["label"] == right.label


def test_the_python_program_needs_no_package_but_three(xexport: Callable[..., Any], exported: Any) -> None:
    tree = ast.parse(snippet(xexport, exported.model, "python"))
    imported = {
        (node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported - set(sys.stdlib_module_names) == {"numpy", "onnxruntime", "PIL"}


@pytest.mark.parametrize("language", ["js", "cpp"])
def test_a_core_model_is_for_python_only(xexport: Callable[..., Any], exported: Any, language: str) -> None:
    done = xexport("snippet", exported.core, "--lang", language)
    assert (done.exit_code, "name the full model" in done.stderr) == (1, True)


def test_it_can_be_written_to_a_file(xexport: Callable[..., Any], exported: Any, tmp_path: Path) -> None:
    done = xexport("snippet", exported.model, "-o", tmp_path / "p.py", "--json")
    assert json.loads(done.stdout)["output"] == str(tmp_path / "p.py")
    assert (tmp_path / "p.py").read_text() == snippet(xexport, exported.model, "python")
    done = xexport("snippet", exported.model, "-o", tmp_path / "no" / "p.py")
    assert "Traceback" not in done.output
