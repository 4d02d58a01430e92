"""Data sets of which only the names count."""

from __future__ import annotations

from pathlib import Path


def make(root: Path, *names: str) -> Path:
    """Write a file of each name below ``root``, and return it."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"only names count here")
    return root
