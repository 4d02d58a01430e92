"""What ``--force`` may replace: feature caches, and no other files."""

from __future__ import annotations

from pathlib import Path

import h5py

from xfeat.featurize.cache.reader import FORMAT
from xfeat.featurize.errors import CacheError

_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def check_replaceable(path: Path) -> None:
    """Check that ``--force`` may replace the file at ``path``: a cache, a damaged cache, or no file at all.

    Raises:
        CacheError: if it is anything else, which would be lost.
    """
    if not path.exists():
        return
    if path.is_dir():
        raise _not_replaceable(path, "a folder")
    try:
        with path.open("rb") as file:
            start = file.read(len(_SIGNATURE))
    except OSError as error:
        raise _not_replaceable(path, error.strerror or str(error)) from error
    if start != _SIGNATURE:
        raise _not_replaceable(path, "a file of another kind")
    try:
        with h5py.File(path, "r") as file:
            kind = file.attrs.get("format")
    except (OSError, RuntimeError, KeyError, ValueError, TypeError):
        return  # damaged: nothing in it can be read
    if kind != FORMAT:
        raise _not_replaceable(path, "an HDF5 file of another program")


def _not_replaceable(path: Path, found: str) -> CacheError:
    return CacheError(
        "--force replaces only feature caches",
        path=path,
        expected="an HDF5 file that xfeat featurize wrote",
        found=found,
        fix="choose another file with -o, or move this one away",
    )
