"""The usable processor cores, and tasks on them, without torch: serving runs where it is not installed."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def cores() -> int:
    """Return the number of cores that this process may use, as the affinity and the CPU quota of a container allow."""
    # Not every operating system has an affinity.
    affinity = getattr(os, "sched_getaffinity", None)
    allowed = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(allowed, cpu_quota() or allowed)


@cache
def cpu_quota(process: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the cores that the control groups of this process pay for, rounded up; ``None`` without a limit.

    ``docker --cpus`` and systemd's CPUQuota set it; more threads than that would be stopped in the middle of work.

    Args:
        process: which groups the process is in.
        mounted: where the groups are.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst (cpu.max) and scheduler/sched-bwc.rst (version 1).
    """
    quotas: list[float | None] = []
    try:
        for line in process.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            root = mounted / controllers
            group = root / path.strip("/")
            # The groups above have limits too. In a container, the path may be that outside of it.
            above = [folder for folder in (group, *group.parents) if folder.is_relative_to(root)]
            quotas.extend(map(_read_quota, above))
    except (OSError, ValueError):
        return None
    limits = [quota for quota in quotas if quota]
    return max(1, math.ceil(min(limits))) if limits else None


def _read_quota(group: Path) -> float | None:
    if (both := group / "cpu.max").is_file():
        quota, period = both.read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    if (alone := group / "cpu.cfs_quota_us").is_file():
        microseconds = int(alone.read_text())
        return microseconds / int((group / "cpu.cfs_period_us").read_text()) if microseconds > 0 else None
    return None


def look_ahead(submit: Callable[[T], Future[R]], items: Iterable[T], most: int) -> Iterator[R]:
    """Yield the results of tasks in order; at most ``most`` are submitted ahead, so memory is bounded."""
    waiting: deque[Future[R]] = deque()
    for item in items:
        waiting.append(submit(item))
        if len(waiting) >= most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def in_threads(function: Callable[[T], R], items: Iterable[T], workers: int, name: str) -> Generator[R, None, None]:
    """Yield the results of a function in order, computed in threads, a bounded number ahead.

    Args:
        function: called with each item.
        items: consumed as results are.
        workers: number of threads.
        name: of the threads.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix=name)
    try:
        yield from look_ahead(lambda item: pool.submit(function, item), items, 8 * workers)
    finally:
        pool.shutdown(cancel_futures=True)
