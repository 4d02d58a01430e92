"""Files that appear whole or not at all: written beside their target, flushed to disk, renamed over it."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from xfeat.featurize.errors import OutputError, XfeatError
from xfeat.featurize.system.filesystem import FLUSH, FLUSH_FOLDER, REPLACE, is_missing, optional

_unfinished: set[Path] = set()

ELSEWHERE = "choose another place with -o"

_SPACE = "free some space and run the same command again"
_REASONS = {
    errno.ENOSPC: ("the disk is full", _SPACE),
    errno.EDQUOT: ("the disk quota is used up", _SPACE),
    errno.EFBIG: ("the file would be larger than the limit", "raise the limit (ulimit -f), or {elsewhere}"),
    errno.EACCES: ("no permission to write there", "{elsewhere}"),
    errno.EPERM: ("no permission to write there", "{elsewhere}"),
    errno.EROFS: ("the file system is read-only", "{elsewhere}"),
    errno.EISDIR: ("a folder of that name exists", "move it away, or {elsewhere}"),
    errno.EEXIST: ("its parent folder is a file or a broken symbolic link", "{elsewhere}"),
    errno.ENOTDIR: ("its parent folder is a file", "{elsewhere}"),
    errno.EBUSY: ("another program has it open", "close that program, or {elsewhere}"),
    errno.ETXTBSY: ("another program has it open", "close that program, or {elsewhere}"),
    errno.EIO: ("the disk reports an error", "check the disk, or {elsewhere}"),
    errno.ESTALE: ("the network file system has lost the folder", "mount it again, or {elsewhere}"),
    errno.ETIMEDOUT: ("the network file system does not answer", "check the connection, or {elsewhere}"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
}


@contextmanager
def replacing(path: Path, *, elsewhere: str = ELSEWHERE) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; what the body writes there replaces ``path`` unless the body raises.

    The body must only write: an ``OSError`` in it is reported as a problem of ``path``.

    Args:
        path: the file to write or replace.
        elsewhere: how the user chooses another path, if the command has no ``-o``.

    Raises:
        OutputError: if it cannot be written; ``path`` is then as it was, and nothing is left beside it.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _unfinished.add(partial)
        yield partial
        flush(partial)
        replace(partial, path)
        flush(path.parent)
    except XfeatError:
        raise
    except OSError as error:
        raise output_error(path, error, elsewhere=elsewhere) from error
    finally:
        with suppress(OSError):
            partial.unlink()
        _unfinished.discard(partial)


def remove_unfinished() -> None:
    """Delete the temporary files of this process, which must end now."""
    for partial in list(_unfinished):
        with suppress(OSError):
            partial.unlink()


def output_error(path: Path, error: OSError, *, elsewhere: str = ELSEWHERE) -> OutputError:
    """Return an error that says why ``path`` cannot be written; ``elsewhere`` says how to choose another path."""
    if (problem := no_temporary_folder(error)) is not None:
        return problem
    reason, fix = _REASONS.get(error.errno or 0, (error.strerror or str(error), "{elsewhere}"))
    return OutputError(f"cannot be written: {reason}", path=path, fix=fix.format(elsewhere=elsewhere))


def no_temporary_folder(error: OSError) -> OutputError | None:
    """Return what to report if an error is Python's, that it finds no folder for temporary files; else ``None``."""
    if error.errno != errno.ENOENT or "temporary directory" not in str(error.strerror):
        return None
    fix = "set TMPDIR to a folder that can be written"
    return OutputError("no folder for temporary files can be written", found=error.strerror, fix=fix)


def replace(source: Path, target: Path) -> None:
    """Rename a file or link over another one, in two steps where the file system cannot do it in one."""
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno not in REPLACE.errors or not os.path.lexists(target):
            raise
        if target.is_dir() and not target.is_symlink():
            raise
        aside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.old")
        try:
            os.rename(target, aside)
        except OSError:
            raise error from None  # nothing may be changed there: the first error says why
        try:
            os.rename(source, target)
        except OSError:
            os.rename(aside, target)
            raise
        is_missing(REPLACE, error, target)
        with suppress(OSError):
            aside.unlink()


def flush(path: Path) -> None:
    """Flush a file or folder to disk, so that it survives a power failure, if the file system can."""
    is_folder = path.is_dir()
    if os.name == "nt" and is_folder:
        return  # Windows cannot open a folder to flush it
    with optional(FLUSH_FOLDER if is_folder else FLUSH, path):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
