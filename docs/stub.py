"""Write xfeat/__init__.pyi: the public names with their signatures, for editors and mypy. ``make docs`` runs this.

``import xfeat`` imports nothing of them, and the settings of specs are arguments, so no tool finds them in the source.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import xfeat

STUB = Path(xfeat.__file__).with_name("__init__.pyi")
HEADER = '"""The public names of xfeat. Written by `make docs`: a change here is a change of the interface."""\n'
# Where the types of settings are defined.
PLACES = (*(f"xfeat.{package}.specs" for package in ("featurize", "head", "export", "serve")), "xfeat.featurize.public")


def render() -> str:
    """Return the stub."""
    imports: set[str] = set()
    parts = [part for name in xfeat.__all__ for part in _described(name, getattr(xfeat, name), imports)]
    text = "\n".join([HEADER, *sorted(imports), *parts]) + "\n"
    for command in (["check", "--quiet", "--select", "I", "--fix"], ["format", "--quiet"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(STUB), "-"]
        text = subprocess.run(ruff, input=text, capture_output=True, text=True, check=True).stdout  # nosec B603
    return text


def _described(name: str, value: object, imports: set[str]) -> Iterator[str]:
    assert callable(value)
    if not isinstance(value, type):
        yield f"def {name}{_signature(value, value.__module__, imports)}: {_summary(value)}"
    elif hasattr(value.__init__, "__signature__"):
        imports.add(f"from {value.__module__} import {name} as _{name}")
        yield f"class {name}(_{name}):\n    def __init__{_signature(value.__init__, value.__module__, imports)}: ..."
    else:
        imports.add(f"from {value.__module__} import {name} as {name}")


def _summary(function: Callable[..., object]) -> str:
    return f'\n    """{(inspect.getdoc(function) or "").splitlines()[0]}"""'


def _signature(function: Callable[..., object], module: str, imports: set[str]) -> str:
    signature = inspect.signature(function)
    parameters = []
    for parameter in signature.parameters.values():
        if parameter.annotation is not inspect.Parameter.empty:
            imports |= set(_imports(parameter.annotation, module))
        parameters.append(_text(parameter))
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and "*" not in parameters:
            parameters.insert(-1, "*")
    returned = "None" if signature.return_annotation is inspect.Signature.empty else signature.return_annotation
    imports |= set(_imports(returned, module))
    return f"({', '.join(parameters)}) -> {returned}"


def _text(parameter: inspect.Parameter) -> str:
    star = "**" if parameter.kind is inspect.Parameter.VAR_KEYWORD else ""
    kind = "" if parameter.annotation is inspect.Parameter.empty else f": {parameter.annotation}"
    return f"{star}{parameter.name}{kind}{_default(parameter.default)}"


def _default(value: object) -> str:
    if value is inspect.Parameter.empty:
        return ""
    try:
        ast.literal_eval(repr(value))
    except (SyntaxError, ValueError):
        return " = ..."
    return f" = {value!r}"


def _imports(annotation: str, module: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(annotation, mode="eval")):
        if isinstance(node, ast.Name) and not hasattr(builtins, node.id) and node.id not in xfeat.__all__:
            yield next(found for place in (module, *PLACES) if (found := _import_of(node.id, place)))


def _import_of(name: str, module: str) -> str | None:
    """Return the statement that imports a name as a module has it: imported there, if only for types, or defined."""
    tree = ast.parse(Path(importlib.import_module(module).__file__).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and any((each.asname or each.name) == name for each in node.names):
            return f"from {node.module} import {name}"
        if isinstance(node, ast.Import) and any(each.name == name for each in node.names):
            return f"import {name}"
        defined = [each.id for each in getattr(node, "targets", ()) if isinstance(each, ast.Name)]
        if name in defined or (isinstance(node, ast.ClassDef) and node.name == name):
            return f"from {module} import {name}"
    return None


if __name__ == "__main__":
    STUB.write_text(render())
