"""What a tracker is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

Parameters = Mapping[str, Any]


Metrics = Mapping[str, float]


class Tracker(Protocol):
    """One place that is told. Any of the methods may fail with any exception."""

    title: str

    def begin(self, name: str, parameters: Parameters, key: str) -> None:
        """Start a record. With a ``key``, go on with the record that has the same one, if there is any."""

    def record(self, step: int, metrics: Metrics) -> None:
        """Add what was measured in a step, such as an epoch."""

    def child(self, name: str, parameters: Parameters, metrics: Metrics) -> None:
        """Add a finished record below this one, unless it has one of that name."""

    def end(self, metrics: Metrics, files: Sequence[Path]) -> None:
        """Close the record with its final figures, and with files and folders to keep."""

    def fail(self, *, killed: bool) -> None:
        """Close the record of something that did not come to its end."""
