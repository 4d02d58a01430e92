"""Time limits for what Python cannot interrupt: a read from a disk that does not answer, a decoder that never ends."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import ParamSpec, TypeVar

from xfeat.featurize.errors import DataError, ImageError

P = ParamSpec("P")
R = TypeVar("R")


class TimeLimitError(ImageError):
    """An image was not read or decoded in time."""


def limited(limit_s: float, what: str, *, most_in_a_row: int = 0) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Give a function a time limit per call.

    The call runs in a thread of its own, which is given up when the time is over: it may never end, and nobody waits
    for it, not even the exit of the process.

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
            future: Future[R] = Future()

            def call() -> None:
                try:
                    future.set_result(function(*args, **kwargs))
                except BaseException as error:  # noqa: BLE001 - it is raised again in the thread that waits
                    future.set_exception(error)

            threading.Thread(target=call, name=what, daemon=True).start()
            if wait([future], limit_s).done:
                in_a_row = 0
                return future.result()
            in_a_row += 1
            if in_a_row == most_in_a_row:
                in_a_row = 0
                raise DataError(
                    f"{most_in_a_row} files in a row were not {what} within {limit_s:.0f} s",
                    found="the disk, or the network that it is mounted over, does not answer",
                    fix="check the mount, and run the same command again",
                )
            raise TimeLimitError(f"not {what} within {limit_s:.0f} s")

        return wrapped

    return decorate
