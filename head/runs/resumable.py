"""Folders that store finished parts of a long computation, so that the next call resumes from them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from xfeat.featurize.system.locks import locked

LOCK_FILE = ".lock"
ELSEWHERE = "choose another place with --runs"


def deterministic_name(identity: dict[str, Any], kind: str) -> str:
    """Return a name that depends on ``identity`` alone, such as ``sweep-0123abcd``: the same call finds its folder."""
    return f"{kind}-{hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]}"


@contextmanager
def resumable_folder(folder: Path, what: str, *, keep_if: Callable[[], bool]) -> Iterator[None]:
    """Create a folder and lock it against other processes.

    Args:
        folder: where results are stored as they are finished.
        what: what the results are of, for the message.
        keep_if: called at the end, also after an exception: if false, the folder is deleted, with the parents created
            for it.

    Raises:
        BusyError: if another process is using it.
        OutputError: if it cannot be created.
    """
    made = [path for path in folder.parents if not path.exists()]
    keep = True
    try:
        with locked(folder / LOCK_FILE, f"another process is using this {what}", of=folder, elsewhere=ELSEWHERE):
            try:
                yield
            finally:
                keep = keep_if()
    finally:
        if not keep:  # after the lock is closed: Windows cannot delete open files
            shutil.rmtree(folder, ignore_errors=True)
            for path in made:
                with suppress(OSError):
                    path.rmdir()
