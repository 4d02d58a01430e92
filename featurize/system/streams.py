"""Stdout and stderr as they are: of any encoding, closed, full, or a terminal of few columns."""

from __future__ import annotations

import codecs
import io
import os
import shutil
import sys

_ERRORS = "xfeat.nearest"
# The signs of this program's own messages, for streams that lack them. Letters of names are escaped instead: a name
# must not turn into another one.
NEAREST = {
    "×": "x",
    "–": "-",
    "—": "-",
    "−": "-",
    "…": "...",
    "→": "->",
    "≥": ">=",
    "≤": "<=",
    "±": "+/-",
    "·": "-",
    "°": " degrees",
    "“": '"',
    "”": '"',
    "\xa0": " ",
    "─": "-",
    "━": "-",
}
_WIDTH_OF_FILES = 100


def prepare_streams() -> None:
    """Make stdout and stderr take any text, whatever their encoding, and also if they are closed."""
    codecs.register_error(_ERRORS, _nearest)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # Closed before this process started. The next file to be opened would get its number, and what libraries
            # in C print would be written into that file.
            try:
                os.fstat(number)
            except OSError:
                os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(os.devnull, "w" if number else "r", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)


def discard_stdout() -> None:
    """Discard what is still to be written to stdout, so that this process does not fail again when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def text_width() -> int:
    """Return the number of columns for text on stdout: those of the terminal, or 100 where it is none."""
    return shutil.get_terminal_size((_WIDTH_OF_FILES, 24)).columns


def _nearest(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(
        NEAREST.get(char) or char.encode("ascii", "backslashreplace").decode() for char in missing
    ), error.end
