"""The report: lines of several topics, where whatever a check raises is a line too."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from xfeat.featurize.errors import XfeatError
from xfeat.featurize.text import columns_of

OK, NOTE, FAIL = "ok", "note", "FAIL"
_WIDEST, _NARROWEST = 110, 30
_NO_TERMINAL = 100
_MARK = max(map(len, (OK, NOTE, FAIL)))


class Line(NamedTuple):
    """What one check found.

    Attributes:
        name: of what was looked at.
        state: ``ok``; ``note``: something that was not promised is missing; ``FAIL``: something does not work.
        found: what was found.
        fix: how to repair it, or empty.
    """

    name: str
    state: str
    found: str
    fix: str = ""


Check = Callable[[], Iterable[Line]]


def run(checks: Mapping[str, Check]) -> list[Line]:
    """Run checks one after the other; one that raises is a line, and the others go on.

    Args:
        checks: name to check; the name is that of the line for a check that raises.
    """
    return [line for name, check in checks.items() for line in _guarded(name, check)]


def _guarded(name: str, check: Check) -> Iterator[Line]:
    try:
        yield from check()
    except XfeatError as error:
        yield Line(name, FAIL, ": ".join(filter(None, (error.what, error.found))), error.fix or "")
    except (Exception, SystemExit) as error:  # noqa: BLE001  a library may raise anything
        yield Line(name, FAIL, f"{type(error).__name__}: {error}", "install it again, if it is a package")


def as_json(topics: Mapping[str, list[Line]]) -> dict[str, Any]:
    """Return the report for ``--json``."""
    lines = {topic: [line._asdict() for line in found] for topic, found in topics.items()}
    return {"ok": not failures(topics), "topics": lines}


def failures(topics: Mapping[str, list[Line]]) -> list[Line]:
    """Return the lines that say that something does not work."""
    return [line for lines in topics.values() for line in lines if line.state == FAIL]


def as_text(topics: Mapping[str, list[Line]], width: int | None = None) -> list[str]:
    """Write the report for a terminal.

    Args:
        topics: topic to its lines.
        width: columns; by default those of the terminal.
    """
    width = width or shutil.get_terminal_size((_NO_TERMINAL, 0)).columns
    width = max(_NARROWEST, min(width, _WIDEST))
    longest = columns_of(line.name for lines in topics.values() for line in lines)
    text = []
    for topic, lines in topics.items():
        text += [topic, *(row for line in lines for row in _rows(line, longest, width)), ""]
    broken = [line.name for line in failures(topics)]
    return [*text, f"does not work: {', '.join(broken)}" if broken else "everything that was installed works"]


def _rows(line: Line, longest: int, width: int) -> Iterator[str]:
    name = f"  {line.state:<{_MARK}}  {line.name}{' ' * (longest - columns_of([line.name]))}"
    indent = " " * (columns_of([name]) + 2)
    if len(indent) > width // 2:  # a narrow terminal: what was found is below the name
        yield name.rstrip()
        name, indent = "   ", "     "
    found, fix = (_wrapped(part, width - len(indent)) for part in (line.found, f"fix: {line.fix}" if line.fix else ""))
    for number, row in enumerate([*found, *fix]):
        yield f"{indent if number else name + '  '}{row}".rstrip()


def _wrapped(text: str, width: int) -> list[str]:
    # Not broken at hyphens: options and package names would no longer be copied whole.
    lines = text.splitlines()
    return [
        row
        for line in lines
        for row in textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False, subsequent_indent="  ")
    ]
