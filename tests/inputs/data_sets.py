"""Data sets of which only the names count."""

from __future__ import annotations

import zipfile
from pathlib import Path


def make(root: Path, *names: str) -> Path:
    """Write a file of each name below ``root``, and return it."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"only names count here")
    return root


def pack(archive: Path, *names: str) -> Path:
    """Write an archive with a file of each name, as it is, and return it."""
    with zipfile.ZipFile(archive, "w") as file:
        for name in names:
            info = zipfile.ZipInfo("x")
            info.filename = name  # zipfile would normalise it
            file.writestr(info, b"only names count here")
    return archive
