"""Ctrl-C and SIGTERM: the first one ends the process within seconds, whatever it is doing.

The main thread gets ``KeyboardInterrupt`` and cleans up. It may not get that far: a library may swallow the exception,
a disk may not answer, a thread may be waited for that never ends. So another thread hears of the signal too, and ends
the process when the time is up.

While a module is imported, the exception waits: a library that loads its C++ part aborts the process on any exception.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from xfeat.featurize.system.atomic import remove_unfinished

EXIT_INTERRUPTED = 130
# Commands write files atomically. A command that also keeps partial work raises Interrupted with a message of its own.
STOPPED = "stopped; no incomplete file is left: run the same command again"
_GRACE_S = 3.5
_CLEAN_UP_S = 0.3
_AGAIN_S = 0.1
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_IMPORT = "<frozen importlib._bootstrap>"

_received = threading.Event()
_raised = threading.Event()
_under_way = threading.Event()


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raise ``KeyboardInterrupt`` in the body on the first Ctrl-C or SIGTERM, and later ones never.

    Any exception after the signal is its consequence, such as that of a library whose child process was stopped, and
    becomes ``KeyboardInterrupt``, too. The handlers stay when the body has ended, until the process has.
    """
    _received.clear()
    _raised.clear()
    _under_way.set()
    with suppress(ValueError):  # only the main thread may set handlers; tests run commands in others
        signal.signal(signal.SIGTERM, _stop)
        # Background jobs of a script ignore it.
        if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, signal.SIG_DFL, _stop):
            signal.signal(signal.SIGINT, _stop)
        _watch()
    try:
        yield
    except KeyboardInterrupt:  # also Interrupted, which says how to resume
        raise
    except Exception as error:
        if not _received.is_set():
            raise
        raise KeyboardInterrupt from error
    finally:
        _under_way.clear()  # from here on, the caller says that it was stopped


def _stop(number: int, frame: FrameType | None) -> None:
    _received.set()
    if not _raised.is_set() and not _is_importing(frame):
        _raised.set()
        # An object of a library that was interrupted while it was made may fail again when it is deleted.
        sys.unraisablehook = lambda unraisable: None
        raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORT:
            return True
        frame = frame.f_back
    return False


def _watch() -> None:
    """Start the thread that ends the process; Python writes each signal's number into a pipe when it arrives."""
    numbers, wake_up = os.pipe()
    os.set_blocking(wake_up, False)
    earlier = signal.set_wakeup_fd(wake_up, warn_on_full_buffer=False)
    if earlier != -1:  # an earlier command of this process has a thread already
        signal.set_wakeup_fd(earlier)
        os.close(wake_up)
        os.close(numbers)
        return
    threading.Thread(target=_end_in_time, args=[numbers], name="stop", daemon=True).start()


def _end_in_time(numbers: int) -> None:
    while True:
        number = os.read(numbers, 1)[0]
        # While a server runs, it has handlers of its own, and finishes the requests that it has accepted.
        if number in _SIGNALS and signal.getsignal(number) == _stop:
            break
    end = time.monotonic() + _GRACE_S
    while time.monotonic() < end:
        time.sleep(_AGAIN_S)
        if not _raised.is_set() and os.name != "nt":
            # A real signal, which ends what the main thread waits for.
            signal.pthread_kill(threading.main_thread().ident or 0, number)
    clean_up = threading.Thread(target=remove_unfinished, daemon=True)  # the disk may not answer
    clean_up.start()
    clean_up.join(_CLEAN_UP_S)
    if _under_way.is_set():
        with suppress(OSError):
            os.write(2, f"{STOPPED}\n".encode())
    os._exit(EXIT_INTERRUPTED)
