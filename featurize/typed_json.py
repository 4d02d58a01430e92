"""JSON that comes from a file: parsed strictly, and digest and types checked before a value is used."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, get_type_hints

from xfeat.featurize.text import quote

if TYPE_CHECKING:
    from typeguard import TypeCheckMemo


def parse_json(text: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: if it is no JSON, is nested too deeply, or has a number that is not finite.
    """
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def check_types(values: Mapping[str, Any], kind: type) -> None:
    """Check values against the annotations of a dataclass or typed dictionary, down to the items of lists.

    A list counts as a tuple, which JSON does not have.

    Args:
        values: by name of the field; fields that are missing, and names that are no field, are not checked.
        kind: the class.

    Raises:
        ValueError: if a value has another type; the message names the field.
    """
    from typeguard import CollectionCheckStrategy, TypeCheckError, check_type, checker_lookup_functions

    if _find_checker not in checker_lookup_functions:
        checker_lookup_functions.insert(0, _find_checker)
    hints = _hints(kind)
    for name in hints.keys() & values.keys():
        try:
            check_type(values[name], hints[name], collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
        except TypeCheckError as error:
            raise ValueError(f"{name}: {' '.join(str(error).split())}, but {quote(repr(values[name]))}") from error


_hints = functools.cache(get_type_hints)  # slow; an extractor asks in every call


def with_digest(content: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON object with ``content_sha256``, the digest of everything else in it."""
    return {**content, "content_sha256": _content_digest(content)}


def _content_digest(stored: dict[str, Any]) -> str:
    """Return the digest of a JSON object without its entry ``content_sha256``."""
    rest = {name: value for name, value in stored.items() if name != "content_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def require_unchanged(stored: dict[str, Any]) -> None:
    """Require that a JSON object has its digest; those of earlier versions have none.

    Raises:
        ValueError: if it has another one.
    """
    if stored.get("content_sha256", digest := _content_digest(stored)) != digest:
        raise ValueError("it has changed since it was saved: its content has another SHA-256")


def _find_checker(origin: Any, args: tuple[Any, ...], extras: tuple[Any, ...]) -> Callable[..., None] | None:
    return _check_tuple if origin is tuple else None


def _check_tuple(value: Any, origin: Any, args: tuple[Any, ...], memo: TypeCheckMemo) -> None:
    from typeguard import TypeCheckError, check_type_internal

    if not isinstance(value, tuple | list):
        raise TypeCheckError("is not a tuple")
    kinds = len(value) * args[:1] if args[1:] == (...,) else args
    if len(kinds) != len(value):
        raise TypeCheckError(f"has {len(value)} items instead of {len(kinds)}")
    for number, (item, kind) in enumerate(zip(value, kinds, strict=True)):
        try:
            check_type_internal(item, kind, memo)
        except TypeCheckError as error:
            error.append_path_element(f"item {number}")
            raise


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is not a finite number")
    return value
