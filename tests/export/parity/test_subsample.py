"""Which rows a check takes of many."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from xfeat.export.parity.subsample import subsample


@given(count=st.integers(0, 200), most=st.integers(1, 250))
def test_they_are_at_most_as_many_as_wanted_and_evenly_spread(count: int, most: int) -> None:
    kept = list(subsample(range(count), most))
    assert len(kept) <= most
    assert len({after - before for before, after in pairwise(kept)}) <= 1
    if count:
        step = kept[1] - kept[0] if len(kept) > 1 else count
        assert kept[0] == 0
        assert kept[-1] + step >= count, "the end is covered too"
        assert step == 1 or -(-count // (step - 1)) > most, "no closer spacing would do"


def test_without_a_limit_all_are_taken() -> None:
    assert subsample("abc", None) == "abc"
