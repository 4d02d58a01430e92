"""Settings of specs as arguments: what Python programs pass is taken, or one error names the argument."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from xfeat.featurize.errors import ArgumentError, SpecError, XfeatError
from xfeat.featurize.keyword_settings import keyword_settings
from xfeat.featurize.specs import FeatureRequest, Triple, require


@dataclass(frozen=True, kw_only=True)
class Inner:
    """What is inside.

    Attributes:
        level: 0 or more.
    """

    level: float = 1.0

    def __post_init__(self) -> None:
        require(self.level >= 0, "level out of range", expected="0 or more", found=self.level)


@dataclass(frozen=True, kw_only=True)
class Outer:
    """What is outside.

    Attributes:
        count: a number.
        widths: several.
        file: a path.
        mean: of three channels.
        inner: what is inside.
    """

    count: int = 3
    widths: tuple[int, ...] = (1, 2)
    file: Path | None = None
    mean: Triple | None = None
    inner: Inner = Inner()


@keyword_settings(inner=Inner, outer=Outer)
def work(data: str, name: str = "x", *, inner: Inner, outer: Outer) -> Any:
    """Do something."""
    return data, name, inner, outer


TAKEN: dict[str, tuple[dict[str, Any], Outer]] = {
    "nothing": ({}, Outer()),
    "numbers of numpy": ({"count": np.int64(5), "level": np.float32(2)}, Outer(count=5, inner=Inner(level=2.0))),
    "a list": ({"widths": [4, np.int32(5)]}, Outer(widths=(4, 5))),
    "text for a path": ({"file": "a.png"}, Outer(file=Path("a.png"))),
    "a whole number for a fraction": ({"level": 2}, Outer(inner=Inner(level=2.0))),
    "one number for three": ({"mean": 0.5}, Outer(mean=(0.5, 0.5, 0.5))),
    "a list for three": ({"mean": [0.1, 0.2, 0.3]}, Outer(mean=(0.1, 0.2, 0.3))),
    "an array": ({"widths": np.array([4, 5])}, Outer(widths=(4, 5))),
    "an array for three": ({"mean": np.array([0.1, 0.2, 0.3])}, Outer(mean=(0.1, 0.2, 0.3))),
    "an array of nothing": ({"widths": np.array([], int)}, Outer(widths=())),
    "an array without a shape": ({"mean": np.array(0.5)}, Outer(mean=(0.5, 0.5, 0.5))),
    "a column": ({"mean": pandas.Series([0.1, 0.2, 0.3])}, Outer(mean=(0.1, 0.2, 0.3))),
    "a tuple of numbers of numpy": ({"widths": (np.int32(4), np.int64(5))}, Outer(widths=(4, 5))),
    "whole numbers for three fractions": ({"mean": [0, 1, 0]}, Outer(mean=(0.0, 1.0, 0.0))),
    "none": ({"file": None}, Outer()),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_settings_are_taken_as_programs_have_them(kind: str) -> None:
    given, expected = TAKEN[kind]
    data, name, inner, outer = work("data", **given)
    assert (data, name, outer) == ("data", "x", expected)
    assert inner == outer.inner
    assert type(outer.count) is int
    assert type(inner.level) is float
    assert {type(value) for value in outer.widths} <= {int}
    assert {type(value) for value in outer.mean or ()} <= {float}


REFUSED: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[XfeatError], str]] = {
    "an unknown name": (("data",), {"cuont": 3}, ArgumentError, "data, name, level"),
    "a missing argument": ((), {}, ArgumentError, "data, name, level"),
    "too many by place": (("data", "x", 3), {}, ArgumentError, "data, name, level"),
    "twice": (("data",), {"data": "b"}, ArgumentError, "data, name, level"),
    "text for a number": (("data",), {"count": "3"}, SpecError, "a whole number\n"),
    "a fraction for a whole number": (("data",), {"count": 3.5}, SpecError, "a whole number\n"),
    "none for a number": (("data",), {"count": None}, SpecError, "a whole number\n"),
    "text for a fraction": (("data",), {"level": "much"}, SpecError, "a number\n"),
    "text in a list": (("data",), {"widths": [1, "2"]}, SpecError, "a list of whole numbers\n"),
    "an array of fractions": (("data",), {"widths": np.array([1.5])}, SpecError, "a list of whole numbers\n"),
    "a number for a path": (("data",), {"file": 3}, SpecError, "a path or None\n"),
    "two of three": (("data",), {"mean": [0.1, 0.2]}, SpecError, "three numbers, or one for all three, or None\n"),
    "an array of two": (("data",), {"mean": np.zeros(2)}, SpecError, "three numbers"),
    "an array of two dimensions": (("data",), {"mean": np.zeros((1, 3))}, SpecError, "three numbers"),
    "out of range": (("data",), {"level": -1}, SpecError, "0 or more"),
    "the spec itself": (("data",), {"outer": Outer()}, ArgumentError, "data, name, level"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_wrong_argument_is_one_error_that_is_also_a_builtin(kind: str) -> None:
    places, names, error, expected = REFUSED[kind]
    with pytest.raises(error, match=f"expected: {expected}") as refused:
        work(*places, **names)
    assert isinstance(refused.value, ValueError | TypeError)


def test_help_shows_every_setting() -> None:
    assert list(inspect.signature(work).parameters) == ["data", "name", "level", "count", "widths", "file", "mean"]
    assert "level: 0 or more" in (inspect.getdoc(work) or "")


def test_a_new_field_of_a_request_is_an_argument_of_the_extractor() -> None:
    from xfeat import FeatureExtractor

    names = set(inspect.signature(FeatureExtractor).parameters)
    assert names >= set(inspect.signature(FeatureRequest).parameters) - {"views"}
    assert set(FeatureExtractor().get_params()) == names
