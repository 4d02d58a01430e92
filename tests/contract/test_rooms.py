"""The house: imports point backwards, nothing goes in circles, no folder is a drawer, ``serve`` runs without torch."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("featurize", "head", "export", "serve")
MAY_IMPORT = {
    "featurize": {"featurize"},
    "head": {"featurize", "head"},
    "export": {"featurize", "head", "export"},
    "serve": {"featurize", "head", "export", "serve"},
}
SERVE_MAY_IMPORT_OF_HEAD = ("xfeat.head.evaluation.", "xfeat.head.reports.formatting", "xfeat.head.reports.study_text")
ABSENT_WHERE_SERVED = {
    "torch",
    "torchvision",
    "onnx",
    "onnxscript",
    "sklearn",
    "scipy",
    "matplotlib",
    "h5py",
    "safetensors",
}
MOST_FILES = 16
MOST_LINES = 400


def module_files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def module_name(file: Path) -> str:
    return ".".join(("xfeat", *file.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


FILES = {module_name(file): file for package in PACKAGES for file in module_files(package)}


def imported_modules(file: Path, *, for_types: bool) -> Iterator[str]:
    """Yield every module that a file imports anywhere, in functions too; for type checking only if asked for."""
    tree = ast.parse(file.read_text())
    skipped = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped and not for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def uses() -> dict[Path, set[Path]]:
    """File to the files of this project that it imports, for types too."""
    graph = {}
    for file in FILES.values():
        found = {FILES[name] for name in imported_modules(file, for_types=True) if name in FILES}
        graph[file] = found - {file}
    return graph


def room(file: Path) -> str:
    """A folder of a package, with what lies in it, or a file that lies directly in a package."""
    return "/".join(file.relative_to(ROOT).parts[:2])


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_packages_before_it(package: str) -> None:
    for file in module_files(package):
        used = {name.removeprefix("xfeat.").partition(".")[0] for name in imported_modules(file, for_types=False)}
        too_far = (used & set(PACKAGES)) - MAY_IMPORT[package]
        assert not too_far, f"{file.relative_to(ROOT)} imports {too_far}"


def test_serve_imports_of_head_only_the_figures() -> None:
    used = {name for file in module_files("serve") for name in imported_modules(file, for_types=False)}
    assert [
        name for name in used if name.startswith("xfeat.head") and not name.startswith(SERVE_MAY_IMPORT_OF_HEAD)
    ] == []


def test_no_files_import_one_another_in_a_circle() -> None:
    try:
        TopologicalSorter(uses()).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(str(file.relative_to(ROOT)) for file in error.args[1]))


def test_no_room_uses_a_room_that_uses_it() -> None:
    arrows = {(room(a), room(b)) for a, used in uses().items() for b in used if room(a) != room(b)}
    assert {(a, b) for a, b in arrows if a < b and (b, a) in arrows} == set()


def test_no_folder_is_a_drawer() -> None:
    folders = {file.parent for file in FILES.values()}
    counts = {str(folder.relative_to(ROOT)): len(list(folder.glob("*.py"))) for folder in folders}
    assert {name: count for name, count in counts.items() if count > MOST_FILES} == {}


def test_every_room_says_what_it_is_for_in_a_line_or_two() -> None:
    for folder in {file.parent for file in FILES.values()}:
        text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
        assert text, f"{folder.relative_to(ROOT)}/__init__.py has no docstring"
        assert len(text.splitlines()) <= 2, folder


def test_every_module_is_small_enough_to_read() -> None:
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in FILES.values()}
    assert {file: lines for file, lines in lengths.items() if lines > MOST_LINES} == {}


def test_nothing_that_serve_reaches_imports_torch() -> None:
    """Follow imports from every module of serve through this project's modules."""
    waiting, seen = module_files("serve"), set()
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen.add(file)
        for name in imported_modules(file, for_types=False):
            assert name.partition(".")[0] not in ABSENT_WHERE_SERVED, f"{file.relative_to(ROOT)} imports {name}"
            if name in FILES:
                waiting.append(FILES[name])
    assert ROOT / "featurize" / "images" / "preprocess.py" in seen, "serving must use the pixels of caching"


def test_the_four_packages_are_imported_through_xfeat_only() -> None:
    """``import head`` finds nothing where the wheel is installed, and could find somebody's own ``head.py``."""
    bare = re.compile(rf"^\s*(?:from|import) (?:{'|'.join(PACKAGES)})\b", re.M)
    listed = subprocess.run(["git", "ls-files", "*.py", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no git checkout")
    files = [ROOT / name for name in listed.stdout.splitlines()]
    assert len(files) > 300
    assert [str(file.relative_to(ROOT)) for file in files if file.is_file() and bare.search(file.read_text())] == []
