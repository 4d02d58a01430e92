"""The exceptions of all four packages.

Every problem that a user can cause or fix is an :class:`XfeatError`; each child also derives from the built-in
exception that it resembles. The message names the file, what was expected, what was found, and the command that fixes
it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xfeat.featurize.text import printable

_INDENT = "\n" + 12 * " "  # aligns the lines of a field


class XfeatError(Exception):
    """A problem that a user can fix, with a readable message.

    Args:
        what: the problem in one phrase.
        path: the file or folder concerned.
        expected: what should have been there.
        found: what was there instead.
        fix: the command or the step that fixes it.
    """

    def __init__(
        self,
        what: str,
        *,
        path: str | os.PathLike[str] | None = None,
        expected: str | None = None,
        found: str | None = None,
        fix: str | None = None,
    ) -> None:
        lines = [f"{printable(path)}: {what}" if path is not None else what]
        # Only what was found may have several lines; a line break elsewhere is part of a file's name.
        texts = {"expected": printable(expected or ""), "found": found, "fix": printable(fix or "")}
        for name, text in texts.items():
            if text:
                lines.append(f"  {name + ':':10}{text}".replace("\n", _INDENT))
        super().__init__("\n".join(lines))
        self.what = what
        self.expected = expected
        self.found = found
        self.file = Path(path) if path is not None else None
        self.fix = fix

    def __str__(self) -> str:
        # OSError and KeyError, which some children derive from, would format their arguments in their own way.
        return str(self.args[0])


class DataError(XfeatError, ValueError):
    """The images, labels or groups given cannot be used as they are."""


class ImageError(XfeatError, ValueError):
    """One image cannot be read; ``what`` is the reason that reports show."""


class SpecError(XfeatError, ValueError):
    """A setting is outside its range, unknown, or contradicts another.

    Without a file it came from the command line, and counts as wrong usage there.
    """


class ArgumentError(XfeatError, TypeError):
    """A Python program gave a function an argument that it does not have, or of another type."""


class DivergedError(XfeatError, ArithmeticError):
    """The loss of a training is not a number."""


class MismatchError(XfeatError, ValueError):
    """Two files that must agree were made with different settings."""


class CacheError(XfeatError, OSError):
    """A ``features.h5`` is missing, damaged, of another version, or no feature cache."""


class RunError(XfeatError, OSError):
    """A run folder is missing, damaged, of another version, or no run."""


class ModelError(XfeatError, OSError):
    """A model file is missing, damaged, no ONNX model, or lacks the metadata that this project writes."""


class WeightsError(XfeatError, OSError):
    """The weights of a backbone cannot be found or downloaded, or belong to another backbone."""


class DeviceError(XfeatError, RuntimeError):
    """The requested device or engine is not available."""

    def __str__(self) -> str:
        return f"{super().__str__()}\n  see:      xfeat doctor"


class OutputError(XfeatError, OSError):
    """A result cannot be written: no permission, no space, no such folder."""


class WorkerError(XfeatError, RuntimeError):
    """A worker process of this program has ended unexpectedly."""


class BusyError(XfeatError, BlockingIOError):
    """Another process is writing the same file."""


class AddressError(XfeatError, OSError):
    """The server cannot listen on its address and port."""


class TrackingError(XfeatError, ConnectionError):
    """An experiment tracker, such as an MLflow server, cannot be used."""


class ParityError(XfeatError, ArithmeticError):
    """The outputs of an exported model differ from those of the trained model."""


class MissingExtraError(XfeatError, ImportError):
    """An optional dependency is needed and not installed."""


@contextmanager
def needs_extra(extra: str, what: str = "") -> Iterator[None]:
    """Say how to install what the body imports.

    Args:
        extra: of this project, that has the package.
        what: what to say; by default that the package is not installed.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        fix = f"pip install 'xfeat-onnx[{extra}]'"
        raise MissingExtraError(what or f"{error.name} is not installed", fix=fix) from error


class Interrupted(XfeatError, KeyboardInterrupt):
    """Stopped by Ctrl-C or SIGTERM; finished work is kept, and ``fix`` says how to resume."""
