"""Digests in run.json and crossval.json, by which it is noticed if they or the files beside them change."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from xfeat.featurize.errors import RunError
from xfeat.featurize.system.regular_files import read_regular


def with_digest(content: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON object with ``content_sha256``, the digest of everything else in it."""
    return {**content, "content_sha256": content_digest(content)}


def content_digest(stored: dict[str, Any]) -> str:
    """Return the digest of a JSON object without its entry ``content_sha256``."""
    rest = {name: value for name, value in stored.items() if name != "content_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def require_unchanged(stored: dict[str, Any]) -> None:
    """Require that a JSON object has its digest; those of earlier versions have none.

    Raises:
        ValueError: if it has another one.
    """
    if stored.get("content_sha256", digest := content_digest(stored)) != digest:
        raise ValueError("it has changed since it was saved: its content has another SHA-256")


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
