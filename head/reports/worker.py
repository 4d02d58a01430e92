"""A worker process for metrics and plots: it imports scikit-learn and matplotlib while this process imports torch.

Calls are sent as pickles over pipes that only the two processes hold; the worker ends when the pipe is closed. No
pickle is ever read from a file. docs/decisions/0031 says how much time this saves.
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
from typing import IO, Any, ParamSpec, TypeVar

from xfeat.featurize.errors import OutputError, WorkerError
from xfeat.featurize.processes import ignoring_current_folder, module_command
from xfeat.featurize.system.user_cache import temporary_folder

P = ParamSpec("P")
R = TypeVar("R")


class Worker:
    """A process that runs functions of this project, one at a time.

    It starts immediately and imports ``modules`` before the first call.

    Args:
        modules: names of modules that the calls will need.
    """

    def __init__(self, *modules: str) -> None:
        command = module_command(__name__, *modules)
        # What its libraries leave there when it is killed (matplotlib, where there is no home folder) goes with it.
        self._temporary = temporary_folder()
        # Ctrl-C reaches all processes of a terminal: this one has its own session, and ends when its pipe is closed.
        with ignoring_current_folder():
            self._process = subprocess.Popen(  # nosec B603  # this Python with a module of this project
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
                env={**os.environ, "TMPDIR": self._temporary.name},
            )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._temporary.cleanup()

    def __call__(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a module-level function in the worker; return its result or raise its exception.

        Raises:
            WorkerError: if the worker has ended; its own output is on stderr.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            _send(self._process.stdin, (function.__module__, function.__qualname__, args, kwargs))
            succeeded, answer = pickle.load(self._process.stdout)  # nosec B301  # from this process's own child
        except (OSError, EOFError) as error:
            code = self._process.wait()
            reason = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            raise WorkerError(
                "the worker process for metrics and plots has ended unexpectedly",
                found=reason,
                fix="run the same command again; if it happens again, free memory by stopping other processes",
            ) from error
        if not succeeded:
            raise answer
        result: R = answer
        return result


def call_here(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a function in this process; used where there is no worker."""
    return function(*args, **kwargs)


def _send(pipe: IO[bytes], message: Any) -> None:
    pickle.dump(message, pipe, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.flush()


def _serve(modules: list[str]) -> None:
    calls, answers = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    sys.stdout = sys.stderr  # output of libraries must not mix with the results
    for module in modules:
        with contextlib.suppress(ImportError, OutputError):  # the call that needs it reports this
            importlib.import_module(module)
    while True:
        try:
            module, name, args, kwargs = pickle.load(calls)  # nosec B301  # from the parent, over its pipe
        except EOFError:
            return
        try:
            _send(answers, (True, getattr(importlib.import_module(module), name)(*args, **kwargs)))
        except BrokenPipeError:
            return
        except Exception as error:  # noqa: BLE001 - it is raised again in the main process
            _send(answers, (False, error))


if __name__ == "__main__":
    _serve(sys.argv[1:])
