"""The number of usable processor cores, without torch: serving runs where it is not installed."""

from __future__ import annotations

import os


def cores() -> int:
    """Return the number of cores that this process may use."""
    # In a container the affinity counts, not the machine. Not every operating system has it.
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
