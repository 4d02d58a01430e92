"""Lines of a check: written at once, so that a stage that crashes or hangs costs only what it had not measured yet."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

NAME = "results.jsonl"
_WIDEST = 60


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the table.

    Attributes:
        stage: which stage wrote it.
        what: what was measured.
        figure: the result.
        limit: what it must keep to, or what cannot be exceeded on this machine.
        ok: whether it keeps to the limit; ``None`` if there is nothing to keep to.
    """

    stage: str
    what: str
    figure: str
    limit: str = ""
    ok: bool | None = None


class Report:
    """Writes the lines of one stage, and says what the stage works on.

    Attributes:
        device: ``cpu`` or ``cuda:N``.
        work: a folder for data and models, shared by the stages.
        small: whether this is a rehearsal without a GPU, with small numbers.
    """

    def __init__(self, stage: str, device: str, work: Path) -> None:
        self.stage = stage
        self.device = device
        self.work = work
        self.small = device == "cpu"

    def add(self, what: str, figure: object, limit: str = "", ok: bool | None = None) -> None:
        line = Line(stage=self.stage, what=what, figure=str(figure), limit=limit, ok=ok)
        with (self.work / NAME).open("a") as file:
            file.write(json.dumps(asdict(line)) + "\n")
        print(f"[{self.stage}] {what}: {figure}{f'   ({limit})' if limit else ''}", flush=True)

    def at_most(self, what: str, value: float, most: float) -> None:
        """Add a difference that must be small; NaN is not."""
        self.add(what, f"{value:.2g}", f"at most {most:g}", bool(value <= most))

    def true(self, what: str, holds: bool) -> None:
        self.add(what, "yes" if holds else "no", "yes", bool(holds))

    def rate(self, what: str, per_second: float, **limits: float) -> None:
        """Add images per second, beside what the parts of the work can do alone."""
        shown = " · ".join(f"{name} {limit:,.0f} ({per_second / limit:.0%})" for name, limit in limits.items())
        self.add(what, f"{per_second:,.0f} images/s", shown)

    @contextlib.contextmanager
    def part(self, what: str) -> Iterator[None]:
        """Report an error as a line; the parts that follow still run."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - it is a line of the report
            text = " ".join(str(error).split())
            self.add(what, f"FAILED: {type(error).__name__}: {text[:300]}", ok=False)


def read_lines(work: Path) -> list[Line]:
    """Return all lines written so far; a line that a killed stage left incomplete is left out."""
    lines = []
    for text in (work / NAME).read_text().splitlines() if (work / NAME).exists() else []:
        with contextlib.suppress(ValueError, TypeError):
            lines.append(Line(**json.loads(text)))
    return lines


def table(lines: Sequence[Line]) -> str:
    """Return the lines as one table for a terminal, aligned."""
    header = Line(stage="stage", what="what", figure="figure", limit="limits")
    marks = {True: "ok", False: "NO", None: "  "}
    rows = [(marks[each.ok], each.stage, each.what, each.figure, each.limit) for each in (header, *lines)]
    # The whole of a long error stands above the table, where its stage printed it.
    cut = [[text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…" for text in row] for row in rows]
    widths = [max(len(row[column]) for row in cut) for column in range(5)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in cut
    )


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest norm of the difference of two rows, over the norm of the expected row."""
    norms = np.maximum(np.linalg.norm(expected, axis=1), 1e-12)
    return float((np.linalg.norm(found - expected, axis=1) / norms).max())


def seconds_per_call(call: Callable[[], object], *, least_s: float = 0.6, device: str = "cpu") -> float:
    """Return the median duration of a call, after two calls to warm up; work queued on a GPU is waited for."""

    def finish() -> None:
        if device != "cpu":
            import torch

            torch.cuda.synchronize(device)

    for _ in range(2):
        call()
    finish()
    durations: list[float] = []
    while len(durations) < 3 or sum(durations) < least_s:
        started = time.perf_counter()
        call()
        finish()
        durations.append(time.perf_counter() - started)
    return float(np.median(durations))
