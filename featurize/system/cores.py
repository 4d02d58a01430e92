"""The usable processor cores, and tasks on them, without torch: serving runs where it is not installed."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def cores() -> int:
    """Return the number of cores that this process may use."""
    # In a container the affinity counts, not the machine. Not every operating system has it.
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def look_ahead(submit: Callable[[T], Future[R]], items: Iterable[T], most: int) -> Iterator[R]:
    """Yield the results of tasks in order; at most ``most`` are submitted ahead, so memory is bounded."""
    waiting: deque[Future[R]] = deque()
    for item in items:
        waiting.append(submit(item))
        if len(waiting) >= most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
