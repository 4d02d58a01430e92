"""Batches in which some images make the whole call fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
E = TypeVar("E", bound=Exception)


def run_isolated(run: Callable[[Sequence[T]], Sequence[R]], batch: Sequence[T], error_type: type[E]) -> list[R | E]:
    """Run a batch. If it fails, run its items one by one, so that only those at fault have no result.

    Args:
        run: returns one result per item.
        batch: the items.
        error_type: errors of ``run`` that are handled in this way; others are raised.

    Returns:
        Per item its result, or the error that it raised alone.
    """
    try:
        return list(run(batch))
    except error_type as error:
        if len(batch) == 1:
            return [error]
        return [outcome for item in batch for outcome in run_isolated(run, [item], error_type)]
