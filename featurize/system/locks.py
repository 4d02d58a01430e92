"""One process at a time: locks that the operating system releases when their process dies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from xfeat.featurize.errors import BusyError
from xfeat.featurize.system.atomic import ELSEWHERE, output_error


@contextmanager
def locked(file: Path, busy: BusyError, *, of: Path, elsewhere: str = ELSEWHERE) -> Iterator[None]:
    """Hold a lock; fail at once if another process holds it.

    Args:
        file: the lock file; its folder is created.
        busy: raised if another process holds the lock.
        of: the output that the lock protects, named if the lock cannot be created.
        elsewhere: how the user chooses another path for that output.

    Raises:
        OutputError: if the lock cannot be created.
    """
    lock = FileLock(file, timeout=0)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise busy from error
    except OSError as error:
        raise output_error(of, error, elsewhere=elsewhere) from error
    try:
        yield
    finally:
        lock.release()
