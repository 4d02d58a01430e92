"""JSON that comes from a file: parsed strictly, and types checked before a value is used."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, get_type_hints


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

    Args:
        values: by name of the field; fields that are missing, and names that are no field, are not checked.
        kind: the class.

    Raises:
        ValueError: if a value has another type; the message names the field.
    """
    from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

    hints = get_type_hints(kind)
    for name in hints.keys() & values.keys():
        try:
            check_type(values[name], hints[name], collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
        except TypeCheckError as error:
            raise ValueError(f"{name}: {' '.join(str(error).split())}, but {_short(values[name])}") from error


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is not a finite number")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
