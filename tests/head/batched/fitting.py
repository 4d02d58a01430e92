"""Many heads trained at once, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from xfeat.featurize.errors import DivergedError
from xfeat.head.batched.engine import Job
from xfeat.head.batched.scheduler import fit_tasks, tasks_on, threads_for
from xfeat.head.data.rows import AnyRows
from xfeat.head.training.fit import FittedHead


def fit_heads(
    jobs: Sequence[Job],
    rows: AnyRows,
    valid: AnyRows | None,
    *,
    classes: int,
    backend: str | None = None,
) -> list[FittedHead]:
    """Train heads on the same rows and return them in the order of the jobs; raise the error of one that diverged."""
    fitted: dict[int, FittedHead] = {}
    threads = threads_for(rows, backend)
    tasks = tasks_on(dict(enumerate(jobs)), rows, valid, classes=classes, threads=threads, backend=backend)
    with closing(fit_tasks(tasks, classes=classes, threads=threads)) as blocks:
        for block in blocks:
            for number, outcome in block.outcomes.items():
                if isinstance(outcome, DivergedError):
                    raise outcome
                fitted[number] = outcome
    return [fitted[number] for number in range(len(jobs))]
