"""Time limits for what Python cannot interrupt: a read from a disk that does not answer, a decoder that never ends."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
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
            outcome: SimpleQueue[tuple[R | None, BaseException | None]] = SimpleQueue()

            def call() -> None:
                try:
                    outcome.put((function(*args, **kwargs), None))
                except BaseException as error:  # noqa: BLE001 - it is raised again in the thread that waits
                    outcome.put((None, error))

            threading.Thread(target=call, name=what, daemon=True).start()
            try:
                result, error = outcome.get(timeout=limit_s)
            except Empty:
                in_a_row += 1
                if in_a_row == most_in_a_row:
                    in_a_row = 0
                    raise _does_not_answer(most_in_a_row, what, limit_s) from None
                raise TimeLimitError(f"not {what} within {limit_s:.0f} s") from None
            in_a_row = 0
            if error is not None:
                raise error
            return result  # type: ignore[return-value]

        return wrapped

    return decorate


def _does_not_answer(count: int, what: str, limit_s: float) -> DataError:
    return DataError(
        f"{count} files in a row were not {what} within {limit_s:.0f} s",
        found="the disk, or the network that it is mounted over, does not answer",
        fix="check the mount, and run the same command again",
    )
