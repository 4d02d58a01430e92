"""The log on stderr: lines with their time, as text, or as one JSON object each. No library of the server here."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO

from xfeat.featurize.text import printable_lines

_START = '{"time": '
_LEVELS = ("error", "warning")


class TextLines(logging.Formatter):
    """Log records as text: time, level if it is not the usual one, message, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of a record."""
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        traceback = "\n" + self.formatException(record.exc_info) if record.exc_info else ""
        return f"{_iso(record.created)} {level}{printable_lines(record.getMessage())}{traceback}"


class JsonLines(logging.Formatter):
    """Log records as JSON objects, one per line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return time, level, message, and the traceback if there is one; or the fields of a request."""
        fields = getattr(record, "request_fields", None)
        line = {"level": record.levelname.lower(), "message": "request" if fields else record.getMessage()}
        line |= fields or {}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return _json(_iso(record.created), line)


class JsonStderr(io.TextIOBase):
    """Replaces ``sys.stderr``: what is written becomes the message of a JSON object. Those of the log pass unchanged.

    Args:
        stream: to write to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._unfinished = ""

    def write(self, text: str) -> int:
        """Write what ends in a line break as one object, however many lines it has; keep the rest for later."""
        self._unfinished += text
        if self._unfinished.endswith("\n"):
            whole, self._unfinished = self._unfinished, ""
            if not whole.startswith(_START):
                whole = _as_object(whole.strip("\n"))
            self._stream.write(whole)
            self._stream.flush()
        return len(text)

    def flush(self) -> None:
        """Flush the stream; an unfinished line waits for its end."""
        self._stream.flush()

    def fileno(self) -> int:
        """Return the file descriptor of the stream."""
        return self._stream.fileno()


class _CurrentStderr(logging.StreamHandler[Any]):
    """Writes to what ``sys.stderr`` is at that time."""

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, value: Any) -> None: ...


@contextlib.contextmanager
def log_to_stderr(kind: str) -> Iterator[None]:
    """Write log records with their time, as ``text`` or ``json``; with ``json``, everything else on stderr as well.

    Exceptions that nothing has caught, and Python's warnings, become log records. What a library of C++ writes past
    Python does not.
    """
    handler = _CurrentStderr()
    handler.setFormatter(JsonLines() if kind == "json" else TextLines())
    root, ours = logging.getLogger(), logging.getLogger("xfeat")
    before = ours.handlers[:], sys.stderr, sys.excepthook, threading.excepthook
    ours.handlers.clear()  # it passes them on to the root
    root.addHandler(handler)
    logging.captureWarnings(True)
    if kind == "json":
        sys.stderr = JsonStderr(sys.stderr)
        sys.excepthook = _log_exception
        threading.excepthook = lambda hook: _log_exception(hook.exc_type, hook.exc_value, hook.exc_traceback)
        _import_onnxruntime()
    try:
        yield
    finally:
        ours.handlers[:], sys.stderr, sys.excepthook, threading.excepthook = before
        root.removeHandler(handler)
        logging.captureWarnings(False)


def _import_onnxruntime() -> None:
    """Import it now: it looks for GPUs then, and writes what it does not find past Python, to file descriptor 2."""
    with tempfile.TemporaryFile() as file:
        stderr = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            with contextlib.suppress(ImportError):
                import onnxruntime  # noqa: F401
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            file.seek(0)
            for line in file.read().decode(errors="replace").splitlines():
                sys.stderr.write(f"{line}\n")


def _log_exception(kind: type[BaseException], value: BaseException | None, traceback: TracebackType | None) -> None:
    if value is not None:
        logging.getLogger("xfeat").critical("%s: %s", kind.__name__, value, exc_info=(kind, value, traceback))


def _as_object(text: str) -> str:
    level, colon, message = text.partition(": ")
    if level.lower() not in _LEVELS or not colon:  # click writes Error
        level, message = "info", text
    return _json(_iso(datetime.now().timestamp()), {"level": level.lower(), "message": message}) + "\n" if text else ""


def _json(time: str, line: dict[str, Any]) -> str:
    return json.dumps({"time": time, **line})


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
