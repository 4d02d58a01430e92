"""Folders in which a long piece of work keeps what is finished, for the next call to go on with."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from xfeat.featurize.errors import BusyError
from xfeat.featurize.system.locks import locked

ELSEWHERE = "choose another place with --runs"


@contextmanager
def resumable_folder(folder: Path, what: str, *, worth_keeping: Callable[[], bool]) -> Iterator[None]:
    """Make a folder and keep other processes out of it.

    Args:
        folder: where results are kept as they come.
        what: that results are of, for the message.
        worth_keeping: asked at the end, however that comes: if not, the folder goes, and so do those made for it.

    Raises:
        BusyError: if another process is at it.
        OutputError: if it cannot be made.
    """
    made = [path for path in folder.parents if not path.exists()]
    busy = BusyError(f"another process is at this {what}", path=folder, fix="wait for it")
    keep = True
    try:
        with locked(folder / ".lock", busy, of=folder, elsewhere=ELSEWHERE):
            try:
                yield
            finally:
                keep = worth_keeping()
    finally:
        if not keep:  # only now: Windows removes no file that is open
            _remove(folder, made)


def _remove(folder: Path, made: list[Path]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for path in made:
        with suppress(OSError):
            path.rmdir()
