"""Folders for files that can be recreated: converted networks, the runtime of the offline page, temporary files."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from filelock import FileLock

from xfeat.featurize.errors import OutputError
from xfeat.featurize.system.atomic import output_error

logger = logging.getLogger(__name__)

ANOTHER_CACHE = "set XFEAT_CACHE_DIR to a folder that can be written"
_PREFIX = "xfeat-"
_IN_USE = ".in-use"


def user_cache() -> Path | None:
    """Return the user's cache folder (``$XDG_CACHE_HOME`` or ``~/.cache``), or ``None`` if there is no home folder."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:  # HOME is not set, and the user is not in the list of users, as in many containers
        return None
    return folder if folder.is_absolute() else None  # a relative one would be another folder for each current folder


def cache_file(name: str) -> Path:
    """Return the path of a cached file: where it is, or else where it can be written.

    The cache is ``$XFEAT_CACHE_DIR``, else ``xfeat`` in the user's cache folder, else, with a warning, a temporary
    folder that is deleted when this process ends.

    Args:
        name: of the file, relative to the cache.

    Raises:
        OutputError: if none of them can be written.
    """
    folder = cache_folder()
    if folder is not None and ((folder / name).is_file() or is_writable(folder)):
        return folder / name
    return Path(_process_cache(folder).name, name)


def cache_folder() -> Path | None:
    """Return ``$XFEAT_CACHE_DIR``, else ``xfeat`` in the user's cache folder, or ``None`` if there is neither."""
    if folder := os.environ.get("XFEAT_CACHE_DIR"):
        return Path(folder)
    above = user_cache()
    return above / "xfeat" if above is not None else None


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a new temporary folder, for a ``with`` statement; delete those that killed processes left.

    Raises:
        OutputError: if no folder for temporary files can be written.
    """
    try:
        _delete_abandoned(Path(tempfile.gettempdir()))
        return _TemporaryFolder()
    except OSError as error:
        folder = Path(tempfile.tempdir or "/tmp")  # nosec B108  # only named in the message
        raise output_error(folder, error, elsewhere="set TMPDIR to another folder") from error


class _TemporaryFolder(tempfile.TemporaryDirectory[str]):
    """A temporary folder with a file that is locked until the folder or its process is gone."""

    def __init__(self) -> None:
        super().__init__(prefix=_PREFIX, ignore_cleanup_errors=True)
        being_made = Path(self.name, f"{_IN_USE}.new")
        self._in_use = _lock(being_made)
        with suppress(OSError):  # without locks there, and on Windows, only this process deletes the folder
            self._in_use.acquire()
            os.rename(being_made, being_made.with_suffix(""))  # never visible without being locked

    def cleanup(self) -> None:
        self._in_use.release()  # Windows does not delete a locked file
        super().cleanup()


def _delete_abandoned(above: Path) -> None:
    """Delete temporary folders that this user's processes have left; one that somebody holds, or may hold, stays."""
    for folder in above.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another process deletes it, or uses it (Timeout)
            is_own = os.name == "nt" or folder.stat().st_uid == os.getuid()  # Windows: the folder above is the user's
            if is_own and not folder.is_symlink() and (folder / _IN_USE).is_file():
                with _lock(folder / _IN_USE):
                    shutil.rmtree(folder, ignore_errors=True)


def _lock(file: Path) -> FileLock:
    # Released by the system when its process dies; never a soft lock, which would tell nothing about the process.
    return FileLock(file, timeout=0, fallback_to_soft=False)


def is_writable(folder: Path) -> bool:
    """Tell whether files can be written into a folder, which is made if it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


@cache  # which keeps the folder until this process ends
def _process_cache(instead_of: Path | None) -> tempfile.TemporaryDirectory[str]:
    what = f"{instead_of} cannot be written" if instead_of is not None else "there is no home folder (HOME)"
    try:
        folder = temporary_folder()
    except OutputError as error:
        raise OutputError(f"no folder for files that are kept: {what}", found=error.found, fix=ANOTHER_CACHE) from error
    logger.warning("%s, so that converted networks are not kept: %s", what, ANOTHER_CACHE)
    return folder
