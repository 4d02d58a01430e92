"""Which rows a check uses."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from xfeat.export.parity.check_images import subsample


@given(count=st.integers(0, 200), most=st.integers(1, 250))
def test_the_rows_are_at_most_the_limit_and_evenly_spaced(count: int, most: int) -> None:
    rows = list(subsample(range(count), most))
    assert len(rows) <= most
    assert len({after - before for before, after in pairwise(rows)}) <= 1
    if count:
        step = rows[1] - rows[0] if len(rows) > 1 else count
        assert rows[0] == 0
        assert rows[-1] + step >= count, "the end is covered too"
        assert step == 1 or -(-count // (step - 1)) > most, "no closer spacing would do"


def test_without_a_limit_all_rows_are_used() -> None:
    assert subsample("abc", None) == "abc"
