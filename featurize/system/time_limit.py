"""Time limits for what Python cannot interrupt: a read from a disk that does not answer, a decoder that never ends."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import ParamSpec, TypeVar

from xfeat.featurize.errors import ImageError

P = ParamSpec("P")
R = TypeVar("R")


class TimeLimitError(ImageError):
    """An image was not read or decoded in time."""


def limited(limit_s: float, what: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Give a function a time limit per call.

    The call runs in a thread of its own, which is given up when the time is over: it may never end, and nobody waits
    for it, not even the exit of the process.

    Args:
        limit_s: the limit.
        what: what was not done in time, such as ``read``.

    Returns:
        A decorator. The function raises :class:`TimeLimitError` when the time is over.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
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
                raise TimeLimitError(f"not {what} within {limit_s:.0f} s") from None
            if error is not None:
                raise error
            return result  # type: ignore[return-value]

        return wrapped

    return decorate
