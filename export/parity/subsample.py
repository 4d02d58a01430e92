"""Evenly spaced rows: a check on some of the images must not cover the first class alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def subsample(rows: Sequence[T], most: int | None) -> Sequence[T]:
    """Return at most ``most`` of ``rows``, evenly spaced; all of them for ``None``."""
    return rows[:: -(-len(rows) // most)] if most and len(rows) > most else rows
