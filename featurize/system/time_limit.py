"""Time limits for what Python cannot interrupt: a read from a disk that does not answer, a decoder that never ends."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec, TypeVar

from xfeat.featurize.errors import DataError, ImageError

P = ParamSpec("P")
R = TypeVar("R")

_idle = threading.local()


class TimeLimitError(ImageError):
    """An image was not read or decoded in time."""


def limited(limit_s: float, what: str, *, most_in_a_row: int = 0) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Give a function a time limit per call.

    The calls of a thread run in a helper thread, which is given up when the time is over: its call may never end, and
    nobody waits for it, not even the exit of the process.

    Args:
        limit_s: the limit.
        what: what was not done in time, such as ``read``.
        most_in_a_row: so many calls that are not done in time, without one that is in between, mean that none will be:
            the last one raises :class:`DataError`. With 0 there is no such number.

    Returns:
        A decorator. The function raises :class:`TimeLimitError` when the time is over.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        in_a_row = 0

        @functools.wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
            nonlocal in_a_row
            helper = _idle.__dict__.pop("helper", None)
            if helper is None or not helper.thread.is_alive():  # threads do not follow into a forked process
                helper = _Helper()
            helper.calls.put(functools.partial(function, *args, **kwargs))
            try:
                succeeded, outcome = helper.outcomes.get(timeout=limit_s)
            except Empty:
                in_a_row += 1
                if in_a_row == most_in_a_row:
                    in_a_row = 0
                    raise DataError(
                        f"{most_in_a_row} files in a row were not {what} within {limit_s:.0f} s",
                        found="the disk, or the network that it is mounted over, does not answer",
                        fix="check the mount, and run the same command again",
                    ) from None
                raise TimeLimitError(f"not {what} within {limit_s:.0f} s") from None
            _idle.helper, in_a_row = helper, 0
            try:
                if succeeded:
                    return outcome  # type: ignore[no-any-return]
                raise outcome
            finally:
                del outcome  # an error holds this frame by its traceback, and the frame would hold the error

        return wrapped

    return decorate


class _Helper:
    """A thread that makes the calls of one other thread, and ends when that one ends or gives it up."""

    def __init__(self) -> None:
        self.calls: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        self.outcomes: SimpleQueue[tuple[bool, Any]] = SimpleQueue()
        self.thread = threading.Thread(target=_work, args=[self.calls, self.outcomes], name="time-limited", daemon=True)
        self.thread.start()

    def __del__(self) -> None:
        self.calls.put(None)


def _work(calls: SimpleQueue[Callable[[], Any] | None], outcomes: SimpleQueue[tuple[bool, Any]]) -> None:
    while (call := calls.get()) is not None:
        try:
            outcomes.put((True, call()))
        except BaseException as error:  # noqa: BLE001 - it is raised again in the thread that waits
            outcomes.put((False, error))
        del call  # its arguments may be a large file
