"""The interface of a tracker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

Parameters = Mapping[str, Any]
Metrics = Mapping[str, float]


class Tracker(Protocol):
    """A place where trainings are recorded. Each method may raise any exception."""

    title: str

    def begin(self, name: str, parameters: Parameters, key: str) -> None:
        """Start a record. With a ``key``, resume the record with the same key, if there is one."""

    def record(self, step: int, metrics: Metrics) -> None:
        """Add the metrics of a step, such as an epoch."""

    def child(self, name: str, parameters: Parameters, metrics: Metrics) -> None:
        """Add a finished child record, unless there is one of that name."""

    def end(self, metrics: Metrics, files: Sequence[Path]) -> None:
        """Close the record with its final metrics, and with files and folders to store."""

    def fail(self, *, killed: bool) -> None:
        """Close the record of a training that ended early."""
