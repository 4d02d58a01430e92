"""A second process that measures and draws: it imports scikit-learn and matplotlib while this one imports torch.

Calls are sent to it as pickles over pipes that only these two processes hold; it ends when the pipe does. No file is
ever read that way. docs/decisions/0031 says what it saves.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Worker:
    """A process that runs functions of this project, one after the other.

    It starts at once and imports ``modules`` while it waits for its first call.

    Args:
        modules: names of modules that the calls will need.
    """

    def __init__(self, *modules: str) -> None:
        # The child finds this project where we found it, whatever the current folder is.
        paths = [str(Path(__file__).absolute().parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()

    def __call__(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a module-level function there and return what it returns, or raise what it raises.

        Raises:
            RuntimeError: if the process has died; its own words are on stderr.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            _send(self._process.stdin, (function.__module__, function.__qualname__, args, kwargs))
            succeeded, answer = pickle.load(self._process.stdout)
        except (OSError, EOFError) as error:
            raise RuntimeError(f"the drawing process ended with code {self._process.wait()}") from error
        if not succeeded:
            raise answer
        result: R = answer
        return result


def call_here(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a function in this process: what takes a worker's place where there is none."""
    return function(*args, **kwargs)


def _send(pipe: IO[bytes], message: Any) -> None:
    pickle.dump(message, pipe, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.flush()


def _serve(modules: list[str]) -> None:
    # Ctrl-C goes to the whole group of processes; the other one decides, and closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    calls, answers = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    sys.stdout = sys.stderr  # whatever a library prints must not get between the answers
    for module in modules:
        with contextlib.suppress(ImportError):  # the call that needs it will say so
            importlib.import_module(module)
    while True:
        try:
            module, name, args, kwargs = pickle.load(calls)
        except EOFError:
            return
        try:
            _send(answers, (True, getattr(importlib.import_module(module), name)(*args, **kwargs)))
        except BrokenPipeError:
            return
        except Exception as error:  # noqa: BLE001 - it is raised again at the other end
            _send(answers, (False, error))


if __name__ == "__main__":
    _serve(sys.argv[1:])
