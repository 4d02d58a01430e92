"""Reads the files of a result, if they are as they were saved."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xfeat.featurize.errors import MismatchError, RunError
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
    except OSError as error:
        problem = "missing" if isinstance(error, FileNotFoundError) else "not readable"
        raise RunError(f"{subject} {problem}", path=file, found=error.strerror, fix=fix) from error
    if expected not in (None, digest := hashlib.sha256(content).hexdigest()):
        raise RunError(
            f"{subject} not what was saved",
            path=file,
            expected=f"SHA-256 {str(expected)[:16]}…",
            found=f"{digest[:16]}…",
            fix=f"{fix}, or restore a copy",
        )
    return content


@contextmanager
def damage_of(file: Path, what: str = "", *, fix: str, expected: str | None = None) -> Iterator[None]:
    """Raise a RunError for what reading a damaged file leads to.

    Args:
        file: that the body reads.
        what: the problem; by default ``damaged`` and its name.
        fix: for the message.
        expected: for the message.

    Raises:
        RunError: for errors of values, of keys, of types and of the system.
        MismatchError: if the body raises one, with the file.
    """
    try:
        yield
    except RunError:
        raise
    except MismatchError as error:
        again = f"{error.fix}, then {fix}"
        raise MismatchError(error.what, path=file, expected=error.expected, found=error.found, fix=again) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise RunError(
            what or f"damaged {file.name}", path=file, expected=expected, found=str(error), fix=fix
        ) from error
