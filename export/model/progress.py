"""How far a check is: images read and answered, counted for a progress callback."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]


class ProgressCounter:
    """Counts what is done and tells it, with how much there is in all.

    Args:
        progress: called with both numbers; the second is 0 as long as it is not known.
        total_of: from the number of images to the number of steps in all.
    """

    def __init__(self, progress: Progress | None, total_of: Callable[[int], int] = int) -> None:
        self._progress = progress
        self._total_of = total_of
        self._done = self._total = 0

    def expect(self, images: int) -> None:
        """Say how many images there are."""
        self._total = self._total_of(images)

    def __call__(self, done: int) -> None:
        """Count steps that were done."""
        self._done += done
        if self._progress is not None:
            self._progress(self._done, self._total)


Advance = Callable[[int], None]
"""Called with the number of images that are done with since the last call."""
