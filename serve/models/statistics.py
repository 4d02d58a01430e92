"""How often and how long a model has worked, in the form in which Triton's clients ask for it."""

from __future__ import annotations

import threading
import time
from typing import Any

# Source: Triton, docs/protocol/extension_statistics.md. There is no cache, and outputs are not copied.
_DURATIONS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")


class ModelStatistics:
    """The counts and times of one model since its file was loaded. All methods may be called from any thread.

    Of the times, ``success`` and ``fail`` are per request, ``queue`` and ``compute_input`` (decoding) per image, and
    ``compute_infer`` per batch.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._durations = {name: {"count": 0, "ns": 0} for name in _DURATIONS}
        self._images = self._batches = self._last_ms = 0

    def add(self, name: str, seconds: float) -> None:
        """Count one more duration of a kind."""
        with self._lock:
            self._durations[name]["count"] += 1
            self._durations[name]["ns"] += int(seconds * 1e9)

    def add_batch(self, images: int, seconds: float) -> None:
        """Count a batch and its images."""
        self.add("compute_infer", seconds)
        with self._lock:
            self._images += images
            self._batches += 1
            self._last_ms = int(time.time() * 1000)

    def to_dict(self) -> dict[str, Any]:
        """Return the counts and times as plain JSON types."""
        with self._lock:
            return {
                "last_inference": self._last_ms,
                "inference_count": self._images,
                "execution_count": self._batches,
                "inference_stats": {name: dict(each) for name, each in self._durations.items()},
                "batch_stats": [],
            }
