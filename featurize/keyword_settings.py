"""Public functions take the fields of a spec as keyword arguments of their own; inside they have the spec."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from xfeat.featurize.errors import ArgumentError, SpecError
from xfeat.featurize.text import quote
from xfeat.featurize.typed_json import check_types
from xfeat.featurize.urls import root_of

R = TypeVar("R")


def keyword_settings(**specs: type[Any]) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Replace parameters that are specs by keyword-only arguments with the names and defaults of the spec's fields.

    The signature and the docstring of the function list them, so that notebooks and ``help`` show them. A spec with a
    field that is called as an earlier parameter is given that one's spec.

    Args:
        specs: parameter to the dataclass that it takes.
    """

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        public = _public_signature(function, specs)
        owners = {
            field.name: name
            for name, spec in specs.items()
            for field in dataclasses.fields(spec)
            if field.name not in specs
        }

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> R:
            arguments = bound_arguments(public, function.__name__, args, kwargs)
            given: dict[str, dict[str, Any]] = {name: {} for name in specs}
            for name in owners.keys() & arguments.keys():
                given[owners[name]][name] = arguments.pop(name)
            built: dict[str, Any] = {}
            for name, spec in specs.items():
                inner = {field.name: built[field.name] for field in dataclasses.fields(spec) if field.name in built}
                built[name] = spec_from(spec, given[name] | inner)
            return function(**arguments, **built)

        wrapped.__signature__ = public  # type: ignore[attr-defined]
        wrapped.__doc__ = inspect.cleandoc(function.__doc__ or "") + "".join(map(_described, specs.values()))
        return wrapped

    return decorate


def bound_arguments(
    signature: inspect.Signature, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Return the arguments of a call by name, without those that are left out.

    Raises:
        ArgumentError: if one is unknown, missing, or given twice.
    """
    try:
        return dict(signature.bind(*args, **kwargs).arguments)
    except TypeError as error:
        names = [each for each in signature.parameters if each != "self"]
        raise ArgumentError(f"{name}(): {error}", expected=", ".join(names)) from error


def spec_from(spec: type[R], values: dict[str, Any]) -> R:
    """Build a spec from values as Python programs have them: lists for tuples, text for paths, numbers of numpy.

    Raises:
        SpecError: if a value is of another type, or out of range.
    """
    kinds = {field.name: str(field.type) for field in dataclasses.fields(spec)}  # type: ignore[arg-type]
    plain = {name: _plain(value, kinds[name]) for name, value in values.items()}
    for name, value in plain.items():
        try:
            check_types({name: value}, spec)
        except ValueError as error:
            expected, found = _in_words(kinds[name]), quote(repr(value))
            raise SpecError(f"{name} has another type", expected=expected, found=found) from error
    return spec(**plain)


_WORDS = {
    "Triple": "three numbers, or one for all three",
    "Triple | None": "three numbers, or one for all three, or None",
    "bool": "True or False",
    "float": "a number",
    "int": "a whole number",
    "str": "text",
    "Path": "a path",
    "Root": "a path",
    "tuple[int, ...]": "a list of whole numbers",
    "tuple[str, ...]": "a list of texts",
}


def _in_words(kind: str) -> str:
    return _WORDS.get(kind) or " or ".join(_WORDS.get(part, part) for part in kind.split(" | "))


def _plain(value: Any, kind: str) -> Any:
    if hasattr(value, "tolist"):  # arrays, and the numbers of numpy
        value = value.tolist()
    if isinstance(value, list | tuple):
        return tuple(_plain(item, "float" if kind.startswith("Triple") else "") for item in value)
    if "Root" in kind and isinstance(value, str | os.PathLike):
        return root_of(value)
    if "Path" in kind and isinstance(value, str | os.PathLike):
        return Path(value)
    if kind.startswith("Triple") and isinstance(value, int | float):
        return (float(value),) * 3
    if kind.startswith("float") and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def _public_signature(function: Callable[..., Any], specs: dict[str, type[Any]]) -> inspect.Signature:
    signature = inspect.signature(function)
    own = [parameter for name, parameter in signature.parameters.items() if name not in specs]
    fields = [
        _parameter(field) for spec in specs.values() for field in dataclasses.fields(spec) if field.name not in specs
    ]
    return signature.replace(parameters=sorted([*own, *fields], key=lambda parameter: parameter.kind))


def _parameter(field: dataclasses.Field[Any]) -> inspect.Parameter:
    default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
    kind = argument_kind(field)
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def argument_kind(field: dataclasses.Field[Any]) -> str:
    """Return the type of a field as an argument: any path is taken, and any sequence."""
    return re.sub(r"tuple\[(\w+), \.\.\.\]", r"Sequence[\1]", re.sub(r"\bPath\b", "StrPath", str(field.type)))


def _described(spec: type[Any]) -> str:
    _, _, attributes = inspect.cleandoc(spec.__doc__ or "").partition("Attributes:\n")
    return f"\n\nSettings of {spec.__name__}:\n{attributes}"
