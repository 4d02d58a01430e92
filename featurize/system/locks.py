"""One process at a time, by a lock that names its holder, and that a dead process does not hold.

The operating system locks a file and releases it when the process dies. On a file system without such locks the file
itself is the lock: its holder writes it again every few seconds, and a file that nobody renews is stale, whichever
machine, container or copy it comes from. No clock and no process number of another machine is relied on.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from xfeat.featurize.errors import BusyError
from xfeat.featurize.system.atomic import ELSEWHERE, output_error
from xfeat.featurize.system.filesystem import LOCKS, is_missing
from xfeat.featurize.system.regular_files import read_regular
from xfeat.featurize.typed_json import parse_json

_RENEWED_S = 2.0
# Ten times as long: a process that was suspended or starved for seconds keeps its lock.
_STALE_S = 20.0

# Appended to the lock file's name: where locks are missing, this file is the lock.
HELD = ".held"

logger = logging.getLogger(__name__)


@contextmanager
def locked(file: Path, busy: str, *, of: Path, elsewhere: str = ELSEWHERE) -> Iterator[None]:
    """Hold a lock; fail if another process holds it.

    Args:
        file: the lock file; its folder is created.
        busy: what to say if another process holds the lock.
        of: the output that the lock protects.
        elsewhere: how the user chooses another path for that output.

    Raises:
        BusyError: with the host, process and time of the holder.
        OutputError: if the lock cannot be created.
    """
    lock = Lock(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        is_free = lock.acquire()
    except OSError as error:
        raise output_error(of, error, elsewhere=elsewhere) from error
    if not is_free:
        raise BusyError(busy, path=of, found=lock.holder(), fix=f"wait until it has finished, or {elsewhere}")
    try:
        yield
    finally:
        lock.release()


class Lock:
    """A lock on a file, held from :meth:`acquire` to :meth:`release`.

    Args:
        file: the lock file; its folder must exist.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock: FileLock | _HeldFile = FileLock(file, timeout=0, fallback_to_soft=False)

    def acquire(self) -> bool:
        """Take the lock; return whether it was free.

        Raises:
            OSError: if the lock file cannot be written.
        """
        try:
            self._lock.acquire()
        except Timeout:
            return False
        except OSError as error:
            if not is_missing(LOCKS, error, self.file):
                raise
            self._lock = held = _HeldFile(self.file.with_name(self.file.name + HELD))
            return held.acquire()
        with suppress(OSError):  # Windows does not let anybody write a locked file
            self.file.write_bytes(_encoded(_description()))
        return True

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()

    def holder(self) -> str:
        """Return who holds the lock, such as ``process 123 on host gauss, since 2026-11-29 10:02:11 UTC``."""
        return _describe(_read(Path(self._lock.lock_file)))


class _HeldFile:
    """A lock file that its holder renews, for file systems without locks."""

    def __init__(self, file: Path) -> None:
        self.lock_file = file
        self._holder = _description()
        self._stop = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="lock", daemon=True)

    def acquire(self) -> bool:
        """Create the file, or take over a stale one; return whether that was possible."""
        if not self._create():
            seen = _read(self.lock_file)
            if _is_renewed(self.lock_file, seen) or not _set_aside(self.lock_file, seen) or not self._create():
                return False
            logger.warning("%s was left by %s and is taken over", self.lock_file, _describe(seen))
        self._renewing.start()
        return True

    def release(self) -> None:
        """Remove the file, unless another process has taken it over."""
        self._stop.set()
        self._renewing.join(_RENEWED_S)
        with suppress(OSError):
            if self._is_ours():
                self.lock_file.unlink()

    def _create(self) -> bool:
        try:
            with self.lock_file.open("xb") as stream:
                stream.write(_encoded(self._holder))
        except FileExistsError:
            return False
        return True

    def _renew(self) -> None:
        while not self._stop.wait(_RENEWED_S):
            with suppress(OSError):  # a network that fails for a moment: the next renewal may succeed
                if not self._is_ours():
                    logger.warning("%s was taken over by %s", self.lock_file, _describe(_read(self.lock_file)))
                    return
                self._holder["renewals"] += 1
                with self.lock_file.open("r+b") as stream:  # never shorter than before, so it is never cut
                    stream.write(_encoded(self._holder))

    def _is_ours(self) -> bool:
        return bool(_decoded(_read(self.lock_file)).get("token") == self._holder["token"])


def _is_renewed(file: Path, seen: bytes) -> bool:
    """Tell whether somebody holds the lock: at once if its process is known to be gone, else by watching."""
    holder, here = _decoded(seen), _namespace()
    if here and holder.get("namespace") == here and not Path(f"/proc/{holder['pid']}").exists():
        return False
    logger.info("%s is held by %s: waiting up to %.0f s for a sign of life", file, _describe(seen), _STALE_S)
    end = time.monotonic() + _STALE_S
    while time.monotonic() < end:
        time.sleep(_RENEWED_S / 4)
        if (now := _read(file)) != seen:
            return bool(now)
    return False


def _set_aside(file: Path, seen: bytes) -> bool:
    """Remove a stale lock file; false if another process was faster."""
    aside = file.with_name(f"{file.name}.{secrets.token_hex(4)}.stale")
    try:
        os.rename(file, aside)
    except FileNotFoundError:
        return True  # released in the meantime
    if _read(aside) != seen:
        os.rename(aside, file)
        return False
    with suppress(OSError):
        aside.unlink()
    return True


def _description() -> dict[str, Any]:
    return {
        "host": platform.node(),
        "pid": os.getpid(),
        "since": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "token": secrets.token_hex(8),
        "namespace": _namespace(),
        "renewals": 0,
    }


def _encoded(facts: dict[str, Any]) -> bytes:
    return json.dumps(facts).encode()


def _decoded(record: bytes) -> dict[str, Any]:
    """Return the facts in a lock file; empty if it holds none, as those of earlier versions."""
    try:
        facts = parse_json(record)
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) and isinstance(facts.get("pid"), int) else {}


def _read(file: Path) -> bytes:
    try:
        return read_regular(file)
    except OSError:
        return b""


def _describe(record: bytes) -> str:
    facts = _decoded(record)
    if not facts:
        return "an unknown process"
    return f"process {facts['pid']} on host {facts.get('host')}, since {facts.get('since')}"


def _namespace() -> str:
    """Return within what process numbers are unique: this start of this machine, and its container; or nothing."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
