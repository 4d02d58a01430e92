"""Values of a sweep as Python programs give them: each form is the list or range that is meant, or one error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from xfeat.featurize.errors import SpecError, XfeatError
from xfeat.head.sweep.space import Range, SweepSpec, as_axis


@pytest.mark.parametrize(
    ("name", "given", "axis"),
    [
        ("lr", 1e-3, (1e-3,)),
        ("lr", [1e-3, 1], (1e-3, 1.0)),
        ("lr", np.array([0.25, 0.5]), (0.25, 0.5)),
        ("lr", "1e-4..1e-2", Range(1e-4, 1e-2)),
        ("lr", Range(1e-4, 1e-2), Range(1e-4, 1e-2)),
        ("epochs", (5, np.int64(6)), (5, 6)),
        ("hidden", (512, 128), ((512, 128),)),
        ("hidden", [], ((),)),
        ("hidden", [(512, 128), [256], ()], ((512, 128), (256,), ())),
        ("hidden", "512,128;linear", ((512, 128), ())),
        ("schedule", ["constant", "cosine"], ("constant", "cosine")),
        ("pooling", ["final", "multilevel"], ("final", "multilevel")),
    ],
)
def test_values_are_what_is_meant(name: str, given: Any, axis: Any) -> None:
    assert as_axis(name, given) == axis


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("lr", "quick"),
        ("lr", ["0.1"]),
        ("lr", [-1.0]),
        ("lr", [None]),
        ("epochs", [1.5]),
        ("epochs", "1..5"),
        ("hidden", [(8.5,)]),
        ("hidden", 8),
        ("schedule", ["none"]),
        ("pooling", ["max"]),
        ("epochs", []),
        ("lr", {0.1, 0.2}),
    ],
)
def test_values_that_mean_nothing_are_refused(name: str, given: Any) -> None:
    with pytest.raises(XfeatError) as refused:
        SweepSpec(axes={name: as_axis(name, given)})
    assert isinstance(refused.value, SpecError)
