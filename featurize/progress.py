"""How public functions report progress, and the type of paths that they take."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

StrPath = str | os.PathLike[str]
Progress = Callable[[str, int, int], None]
"""Called with the activity (``featurizing``), the number of steps done, and their total; 0 if that is unknown."""
Steps = Callable[[int, int], None]
"""The same of one activity: called with the number of steps done, and their total."""


def steps_of(progress: Progress | None, activity: str) -> Steps | None:
    """Return what reports the steps of one activity."""
    return None if progress is None else partial(progress, activity)
