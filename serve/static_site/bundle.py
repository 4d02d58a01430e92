"""Joins JavaScript modules into one script, since a page that is opened as a file cannot import others."""

from __future__ import annotations

import re
from collections.abc import Callable

# The forms that the modules of this project and of onnxruntime-web have; `bundle` refuses others.
_IMPORT = re.compile(
    r'^import (?:\{ (?P<names>.+?) \}|\* as (?P<whole>\w+)) from "\./(?P<module>[\w.-]+)";$', re.MULTILINE
)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|const|let|class) (\w+))", re.MULTILINE)
_EXPORT_LIST = re.compile(r"\bexport ?\{([^}]*)\};?\s*(?://# sourceMappingURL=.*\s*)?\Z")
_LEFT = re.compile(r"^(?:import|export)\b(?!\()|\bexport ?\{", re.MULTILINE)


def bundle(entry: str, read: Callable[[str], str]) -> str:
    """Return a script that does what a module does, with all that it imports.

    Args:
        entry: name of the module.
        read: returns the text of a module.

    Raises:
        ValueError: if a module imports or exports in a form that is not known here.
    """
    scripts: dict[str, str] = {}

    def add(name: str) -> None:
        if name not in scripts:
            text = read(name)
            for found in _IMPORT.finditer(text):
                add(found["module"])
            scripts[name] = _as_function(name, text)

    add(entry)
    return "\n".join(scripts.values())


def _as_function(name: str, text: str) -> str:
    exports = {found[1]: found[1] for found in _EXPORT.finditer(text)}
    text = _EXPORT.sub("", text)
    if listed := _EXPORT_LIST.search(text):
        pairs = (each.split(" as ") for each in listed[1].split(",") if each.strip())
        exports |= {pair[-1].strip(): pair[0].strip() for pair in pairs}
        text = text[: listed.start()]
    # Chromium starts no module as the worker of a page that was opened as a file.
    text = _IMPORT.sub(_as_constant, text).replace("import.meta.url", "self.location.href")
    if (left := _LEFT.search(text)) is not None:
        raise ValueError(f"{name}: {text[left.start() : left.start() + 80]}")
    returned = ", ".join(f"{outside}: {inside}" for outside, inside in exports.items())
    return f"const {_variable(name)} = (() => {{\n{text}\nreturn {{ {returned} }};\n}})();"


def _as_constant(found: re.Match[str]) -> str:
    names = found["whole"] or "{ " + found["names"].replace(" as ", ": ") + " }"
    return f"const {names} = {_variable(found['module'])};"


def _variable(module: str) -> str:
    return "module_" + re.sub(r"\W", "_", module)
