"""``import xfeat``: which names there are, that they cost nothing until they are used, and that commands use them."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import xfeat
from tests.contract.test_rooms import PACKAGES, ROOT, imported_modules

CLASSES = {"EncoderPlugin", "FeatureExtractor", "HeadClassifier", "Predictor", "XfeatError"}
FUNCTIONS = {
    *("audit", "bench", "compare", "cross_validate", "describe", "doctor", "dump", "evaluate", "evaluate_model"),
    *("explain", "export_onnx", "export_run", "extract", "load", "open_cache", "open_run", "quantize", "sign", "split"),
    *("start_server", "sweep", "train", "verify", "write_card", "write_figures", "write_page"),
    *("write_snippet", "write_triton"),
}
# What a command may import at run time besides the shared behaviour: it parses options, or writes a result as text.
PARSES_OR_PRINTS = {
    *("xfeat.export.parity.accuracy_loss", "xfeat.export.parity.signature", "xfeat.featurize.audit.report.summary"),
    *("xfeat.featurize.audit.stored", "xfeat.featurize.backbones.registry", "xfeat.featurize.cache.layout"),
    "xfeat.featurize.cache.columns",
    *("xfeat.featurize.columns.summary", "xfeat.featurize.console", "xfeat.featurize.datasets.image_files"),
    *("xfeat.featurize.doctor.report", "xfeat.featurize.errors", "xfeat.featurize.specs"),
    *("xfeat.featurize.system.atomic", "xfeat.featurize.system.cores", "xfeat.featurize.system.time_limit"),
    *("xfeat.featurize.text", "xfeat.featurize.typed_json", "xfeat.head.compare.table"),
    *("xfeat.head.reports.formatting", "xfeat.head.reports.study_text", "xfeat.head.sweep.ranking"),
    *("xfeat.head.sweep.space", "xfeat.head.sweep.trials", "xfeat.serve.http.stderr_log"),
    "xfeat.serve.dicom_sr.write",
    *("xfeat.serve.inference.results", "xfeat.serve.inference.tables"),
    *(f"xfeat.{package}.specs" for package in PACKAGES),
}
COMMAND_FILES = [file for package in PACKAGES for file in sorted((ROOT / package / "cli").glob("*.py"))]


def test_these_are_the_public_names() -> None:
    """docs/python.md promises that they stay; their signatures are in xfeat/__init__.pyi."""
    assert set(xfeat.__all__) == CLASSES | FUNCTIONS


def test_the_file_of_signatures_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("stub", ROOT / "docs" / "stub.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.STUB.read_text() == module.render(), "run make docs"


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_a_public_function_takes_names_beyond_the_first_two_arguments_and_describes_all(name: str) -> None:
    function = getattr(xfeat, name)
    parameters = inspect.signature(function).parameters.values()
    by_place = [each.name for each in parameters if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert len(by_place) <= (3 if name == "export_onnx" else 2), by_place
    text = inspect.getdoc(function) or ""
    assert [each.name for each in parameters if f"{each.name}:" not in text and f"{each.name}, " not in text] == []
    assert "Raises:" in text or name == "doctor"


def test_the_import_is_small_and_the_names_are_seen() -> None:
    code = (
        "import sys, xfeat\n"
        "heavy = {'numpy', 'torch', 'sklearn', 'h5py', 'PIL', 'click', 'onnxruntime', 'inspect', 'typing'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert set(xfeat.__all__) <= set(dir(xfeat))\n"
        "assert not hasattr(xfeat, 'no_such_name')\n"
        "from xfeat import XfeatError, extract\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", f"import sys; sys.path.append({str(ROOT)!r})\n{code}"])
    assert done.returncode == 0


@pytest.mark.parametrize(("name", "library"), [("FeatureExtractor", "sklearn"), ("HeadClassifier", "torch")])
def test_a_library_that_is_missing_is_named(name: str, library: str) -> None:
    code = (
        f"import sys; sys.modules[{library!r}] = None\n"
        "import xfeat\n"
        f"try: xfeat.{name}\n"
        f"except xfeat.XfeatError as error: assert isinstance(error, ImportError) and {library!r} in str(error)\n"
        "else: raise AssertionError"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def commands() -> Iterator[tuple[str, ast.FunctionDef]]:
    for file in COMMAND_FILES:
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef) and any(
                "click.command" in ast.unparse(d) for d in node.decorator_list
            ):
                yield f"{file.relative_to(ROOT)}:{node.name}", node


COMMANDS = dict(commands())


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_calls_one_public_name(name: str) -> None:
    called = [ast.unparse(node.func) for node in ast.walk(COMMANDS[name]) if isinstance(node, ast.Call)]
    found = [text for text in called if text.startswith("xfeat.")]
    assert len(found) == 1, found
    assert found[0].removeprefix("xfeat.") in xfeat.__all__


def test_all_commands_are_looked_at() -> None:
    assert len(COMMANDS) == 28


@pytest.mark.parametrize("file", COMMAND_FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_command_imports_only_what_parses_and_prints(file: Path) -> None:
    # `from MODULE import NAME` yields both; only modules of this project count.
    imported = {name for name in imported_modules(file, for_types=False) if name.startswith("xfeat.")}
    modules = {
        name for name in imported if (ROOT / name.removeprefix("xfeat.").replace(".", "/")).with_suffix(".py").exists()
    }
    assert {name for name in modules if ".cli." not in name} <= PARSES_OR_PRINTS
