"""The exception tree: one root, each child a built-in's kind too, each message in the same shape."""

from __future__ import annotations

import builtins
import pickle

import pytest

from xfeat.featurize import errors
from xfeat.featurize.errors import XfeatError

CHILDREN = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, XfeatError) and kind is not XfeatError
]


@pytest.mark.parametrize("kind", CHILDREN)
def test_a_child_is_also_the_builtin_it_resembles(kind: type[XfeatError]) -> None:
    own_name_for = [base for base in kind.__bases__ if base is not XfeatError]
    assert len(own_name_for) == 1
    assert getattr(builtins, own_name_for[0].__name__) is own_name_for[0]


@pytest.mark.parametrize("kind", CHILDREN)
def test_a_message_names_file_expectation_finding_and_fix(kind: type[XfeatError]) -> None:
    error = kind("is broken", path="a.h5", expected="whole", found="half", fix="make it again")
    lines = str(error).splitlines()
    assert lines[0] == "a.h5: is broken"
    names = ["expected", "found", "fix"] + ["see"] * (kind is errors.DeviceError)  # xfeat doctor
    assert [line.split(":")[0].strip() for line in lines[1:]] == names


def test_a_message_leaves_out_what_is_not_known() -> None:
    assert str(XfeatError("is broken")) == "is broken"


@pytest.mark.parametrize("kind", CHILDREN)
def test_an_error_crosses_a_process_boundary(kind: type[XfeatError]) -> None:
    error = kind("is broken", path="a.h5")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
