"""A process that runs commands on changed files, so that a crash does not end the tests."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

LIMIT_S = 5
_ROOT = str(Path(__file__).parents[2])
_HUNG_S = 60  # other processes may have the cores
_MEBIBYTE = 1 << 20
# Beyond this, memory that is asked for and not used counts too, and the machine of the tests stays usable.
_ADDRESSES = 6 << 30


@dataclass(frozen=True)
class Case:
    """A command, and the files that it finds changed: path in the project to content; ``None``: the file is gone."""

    command: str
    files: dict[str, bytes | None]
    seals: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What a command did.

    Attributes:
        kind: ``answered``, ``refused`` or ``traceback``.
        answer: what it returned or printed; of a refusal the message, of an exception the traceback.
        warnings: what it logged.
        seconds: of processor time.
        grown_mb: by how much the peak of the memory rose.
    """

    kind: str
    answer: Any
    warnings: tuple[str, ...]
    seconds: float
    grown_mb: float


class Child:
    """The process; it is started again after a crash.

    Args:
        project: its own copy of the project, whose files are restored after each case.
    """

    def __init__(self, project: Path) -> None:
        self._project = project
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, self._project), daemon=True)
        sys.path.insert(0, _ROOT)  # the process gets this path, and finds the tests there
        try:
            self._process.start()
        finally:
            sys.path.remove(_ROOT)
        other.close()

    def run(self, case: Case) -> Outcome:
        """Run a case.

        Raises:
            AssertionError: if the process died or did not answer.
        """
        self._connection.send(case)
        try:
            if self._connection.poll(_HUNG_S):
                outcome = self._connection.recv()
                assert isinstance(outcome, Outcome)
                return outcome
            problem = f"no answer within {_HUNG_S} s"
        except (EOFError, ConnectionError):
            self._process.join()
            problem = f"the process ended with exit code {self._process.exitcode}"
        self.close()
        self._start()
        raise AssertionError(problem)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _serve(connection: Connection, project: Path) -> None:
    from tests.fuzz.commands import COMMANDS, SEALS, Refused, collected_warnings

    before = {file: file.read_bytes() for file in sorted(project.rglob("*")) if file.is_file()}
    limited = False
    while True:
        case = connection.recv()
        for name, content in case.files.items():
            file = project / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.unlink(missing_ok=True)
            if content is not None:
                file.write_bytes(content)
        for name in case.seals:
            SEALS[name](project)
        peak, start = _peak_mb(), time.process_time()
        with collected_warnings() as warnings:
            try:
                kind, answer = "answered", COMMANDS[case.command](project)
            except Refused as refusal:
                kind, answer = "refused", str(refusal)
            except BaseException:  # noqa: BLE001  also one that would end the process
                kind, answer = "traceback", traceback.format_exc()
        seconds = time.process_time() - start
        connection.send(Outcome(kind, answer, tuple(warnings), seconds, _peak_mb() - peak))
        if not limited:  # the first case loads the libraries
            _limit_memory()
            limited = True
        _restore(project, before)


def _restore(project: Path, before: dict[Path, bytes]) -> None:
    for file in project.rglob("*"):
        if file.is_file() and file not in before:
            file.unlink()
    for file, content in before.items():
        if not file.is_file() or file.read_bytes() != content:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.unlink(missing_ok=True)
            file.write_bytes(content)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _MEBIBYTE


def _limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _ADDRESSES, resource.RLIM_INFINITY))
