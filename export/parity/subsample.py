"""Fewer of many, spread evenly: a check on some images must not be one on the first class alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def subsample(rows: Sequence[T], most: int | None) -> Sequence[T]:
    """Return every n-th of ``rows``, so that they are at most ``most``; all of them for ``None``."""
    return rows[:: -(-len(rows) // most)] if most and len(rows) > most else rows
