"""Progress of a check: images read and predictions made, counted for a callback."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]


class ProgressCounter:
    """Counts finished steps and reports them to a callback, with their total.

    Args:
        progress: called with both numbers; the second is 0 while it is unknown.
        total_of: from the number of images to the total number of steps.
    """

    def __init__(self, progress: Progress | None, total_of: Callable[[int], int] = int) -> None:
        self._progress = progress
        self._total_of = total_of
        self._done = self._total = 0

    def expect(self, images: int) -> None:
        """Set the number of images, from which the total follows."""
        self._total = self._total_of(images)

    def __call__(self, done: int) -> None:
        """Add finished steps."""
        self._done += done
        if self._progress is not None:
            self._progress(self._done, self._total)


Advance = Callable[[int], None]
"""Called with the number of images finished since the last call."""
