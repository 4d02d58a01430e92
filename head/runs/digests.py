"""Reads the files beside run.json and crossval.json, if they are as they were saved."""

from __future__ import annotations

import hashlib
from pathlib import Path

from xfeat.featurize.errors import RunError
from xfeat.featurize.system.regular_files import read_regular


def read_unchanged(file: Path, expected: str | None, *, subject: str, fix: str) -> bytes:
    """Return the content of a file that has a digest; ``None`` stands for one of an earlier version, without.

    Args:
        file: to read.
        expected: its SHA-256.
        subject: what it holds, with a verb, for the message.
        fix: for the message.

    Raises:
        RunError: if it cannot be read, or has changed.
    """
    try:
        content = read_regular(file)
    except FileNotFoundError as error:
        raise RunError(f"{subject} missing", path=file, found=error.strerror, fix=fix) from error
    except OSError as error:
        raise RunError(f"{subject} not readable", path=file, found=error.strerror, fix=fix) from error
    if expected not in (None, digest := hashlib.sha256(content).hexdigest()):
        raise RunError(
            f"{subject} not what was saved",
            path=file,
            expected=f"SHA-256 {str(expected)[:16]}…",
            found=f"{digest[:16]}…",
            fix=f"{fix}, or restore a copy",
        )
    return content
