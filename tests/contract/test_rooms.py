"""Imports point only backwards, and ``serve`` runs where torch is not installed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("featurize", "head", "export", "serve")
MAY_IMPORT = {
    "featurize": {"featurize"},
    "head": {"featurize", "head"},
    "export": {"featurize", "head", "export"},
    "serve": {"featurize", "export", "serve"},
}
ABSENT_WHERE_SERVED = {"torch", "torchvision", "onnx", "onnxscript", "sklearn", "matplotlib", "h5py", "safetensors"}


def imported_modules(file: Path) -> Iterator[str]:
    """Yield every module that a file imports anywhere, in functions too, but not for type checking only."""
    tree = ast.parse(file.read_text())
    skipped = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("xfeat.") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            module = str(node.module).removeprefix("xfeat.")
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def module_files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_before_it(room: str) -> None:
    for file in module_files(room):
        rooms = {name.partition(".")[0] for name in imported_modules(file)} & set(ROOMS)
        assert rooms <= MAY_IMPORT[room], f"{file.relative_to(ROOT)} imports {rooms - MAY_IMPORT[room]}"


def test_nothing_that_serve_reaches_imports_torch() -> None:
    """Follow imports from every module of serve through this project's modules."""
    waiting, seen = module_files("serve"), set()
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen.add(file)
        for name in imported_modules(file):
            top = name.partition(".")[0]
            assert top not in ABSENT_WHERE_SERVED, f"{file.relative_to(ROOT)} imports {name}"
            if top in ROOMS:
                path = ROOT.joinpath(*name.split("."))
                waiting += [found for found in (path.with_suffix(".py"), path / "__init__.py") if found.is_file()]
    assert ROOT / "featurize" / "images" / "preprocess.py" in seen, "serving must use the pixels of caching"


def test_every_module_is_small_enough_to_read() -> None:
    long = {str(file): len(file.read_text().splitlines()) for room in ROOMS for file in module_files(room)}
    assert {file: lines for file, lines in long.items() if lines > 400} == {}
