"""Many heads at once: those of one shape as one tensor program, in blocks sized to the cache, one thread a block.

Each head ends where :func:`head.fit.fit_head` alone would have brought it, within float tolerance. docs/decisions/0040
says what was measured.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import islice, pairwise
from threading import Event

import torch
from torch import Tensor

from featurize.errors import DivergedError
from head.batched_program import TorchProgram
from head.batched_training import BlockTraining, Job, MakeProgram, Outcome
from head.fit import FittedHead
from head.rows import MOST_READERS, AnyRows, StoredRows
from head.specs import HeadSpec

logger = logging.getLogger(__name__)

# Weights, gradients and two moments of a block, 16 bytes a weight. The step of Adam passes over all of them, and takes
# twice as long once the blocks of both cores are more than about 48 MiB. docs/decisions/0040 has the table.
_BLOCK_BYTES = 24 << 20
_MOST_HEADS = 16
# Weights times rows times epochs of a head, a fifth of a second alone, from which on the compiled program is used:
# loading it takes 0.7 s, and compiling it, once on a machine, 12 s. It is asked of each head, not of all of a sweep, so
# that one that goes on, or tries a few at a time, computes as before. Few weights take as long as more.
_WORTH_COMPILING = 1.5e9
_LEAST_WEIGHTS = 300_000


@dataclass(frozen=True)
class FittedBlock:
    """Heads that were trained together.

    Attributes:
        outcomes: number of the job to the trained head, or to the reason why it has none.
        seconds: that the block took, on one thread.
    """

    outcomes: dict[int, Outcome]
    seconds: float


def fit_heads(
    jobs: Sequence[Job],
    rows: AnyRows,
    valid: AnyRows | None,
    *,
    classes: int,
    class_weights: Tensor | None = None,
    compiled: bool | None = None,
) -> list[FittedHead]:
    """Train many heads on the same rows; :func:`head.fit.fit_head` for each, faster.

    Args:
        jobs: layers and optimisation of each.
        rows: training rows.
        valid: validation rows, or ``None`` to keep the last epoch.
        classes: number of classes C.
        class_weights: float32 (C,), instead of those that the specs ask for.
        compiled: whether to train with :mod:`head.fused`; by default where it can be and is quicker.

    Returns:
        In the order of ``jobs``.

    Raises:
        DivergedError: if the loss of one of them is not a number from the first epoch on.
    """
    fitted: dict[int, FittedHead] = {}
    threads = threads_for(rows)
    tasks = tasks_on(dict(enumerate(jobs)), rows, valid, classes=classes, threads=threads, compiled=compiled)
    with closing(fit_tasks(tasks, classes=classes, class_weights=class_weights, threads=threads)) as blocks:
        for block in blocks:
            for number, outcome in block.outcomes.items():
                if isinstance(outcome, DivergedError):
                    raise outcome
                fitted[number] = outcome
    return [fitted[number] for number in range(len(jobs))]


def threads_for(rows: AnyRows) -> int:
    """Return how many blocks train at a time: as many as torch has threads, and buffers have room in memory."""
    return min(torch.get_num_threads(), MOST_READERS if isinstance(rows, StoredRows) else sys.maxsize)


@dataclass(frozen=True)
class Task:
    """Heads to train as one program.

    Attributes:
        jobs: number to layers and optimisation; see :func:`shape_of` for what they must share.
        load: gives training and validation rows when it is their turn.
        compiled: whether they are trained by :mod:`head.fused`.
    """

    jobs: Mapping[int, Job]
    load: Callable[[], tuple[AnyRows, AnyRows | None]]
    compiled: bool = False


def tasks_on(
    jobs: Mapping[int, Job],
    rows: AnyRows,
    valid: AnyRows | None,
    *,
    classes: int,
    threads: int,
    compiled: bool | None = None,
) -> list[Task]:
    """Divide jobs on the same rows into blocks, as :func:`divide` does."""
    numbers = list(jobs)
    blocks = divide(list(jobs.values()), rows.dim, classes, threads, one_order=isinstance(rows, StoredRows))
    tasks = []
    for block in blocks:
        own = {numbers[place]: jobs[numbers[place]] for place in block}
        worth = worth_compiling(own[numbers[block[0]]], rows, classes) if compiled is None else compiled
        tasks.append(Task(own, lambda: (rows, valid), worth))
    return tasks


def worth_compiling(job: Job, rows: AnyRows, classes: int) -> bool:
    """Tell whether the compiled program trains such a head in less time here, with what it takes to load it."""
    head, train = job
    work = max(_LEAST_WEIGHTS, _weights(head, rows.dim, classes)) * len(rows.labels) * train.epochs
    return work >= _WORTH_COMPILING and can_compile()


@cache
def can_compile() -> bool:
    """Tell whether numba is installed, and this processor has the instructions that the compiled program is made of."""
    if find_spec("numba") is None:
        return False
    try:
        from numba.core.codegen import get_host_cpu_features
    except ImportError as error:  # it refuses a numpy that is newer than itself
        logger.warning("numba cannot be used, and torch trains the heads: %s", error)
        return False
    return "+fma" in get_host_cpu_features()


def fit_tasks(
    tasks: Iterable[Task],
    *,
    classes: int,
    class_weights: Tensor | None = None,
    threads: int | None = None,
    time_limit_s: float | None = None,
) -> Generator[FittedBlock]:
    """Train several blocks of heads, each on rows of its own, and give them out as they are done.

    Closing the generator ends what is under way within a step.

    Args:
        tasks: the blocks; each is asked for when a thread is free for it.
        classes: number of classes C.
        class_weights: float32 (C,), instead of those that the specs ask for.
        threads: blocks at a time; by default as many as torch has threads.
        time_limit_s: after which unfinished blocks are given up.
    """
    stop = Event()
    until = None if time_limit_s is None else time.monotonic() + time_limit_s
    threads_before = torch.get_num_threads()
    threads = threads or threads_before

    def train(task: Task) -> FittedBlock:
        start = time.monotonic()
        block = BlockTraining(list(task.jobs.values()), *task.load(), classes, class_weights, _program(task))
        return FittedBlock(dict(zip(task.jobs, block.run(stop), strict=True)), time.monotonic() - start)

    waiting = _loaded(tasks)
    running: set[Future[FittedBlock]] = set()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="block", initializer=_start_thread)
    try:
        while True:
            # No more than there are threads: the caller may stop, and nothing is in a queue then.
            running |= {pool.submit(train, task) for task in islice(waiting, threads - len(running))}
            left = None if until is None else max(0.0, until - time.monotonic())
            done, running = wait(running, left, FIRST_COMPLETED)
            if not done:  # all are given out, or the time is up
                return
            for future in done:
                yield future.result()
    finally:
        stop.set()
        pool.shutdown()
        torch.set_num_threads(threads_before)


def divide(
    jobs: Sequence[Job], dim: int, classes: int, threads: int = 1, *, one_order: bool = False
) -> list[list[int]]:
    """Divide jobs, by number, into blocks that train as one program.

    Heads that draw the same random numbers come together; with ``one_order``, no others do. Blocks are made smaller
    where there would be fewer of them than threads.
    """
    shapes: dict[object, list[int]] = {}
    for number, job in enumerate(jobs):
        order = (job[0], job[1].seed) if one_order else None
        shapes.setdefault((shape_of(job), order), []).append(number)
    blocks = []
    for numbers in shapes.values():
        numbers.sort(key=lambda number: (jobs[number][1].seed, str(jobs[number][0])))
        most = min(block_size(jobs[numbers[0]][0], dim, classes), max(1, -(-len(jobs) // threads)))
        count = -(-len(numbers) // most)
        # Blocks as equal as can be: 5 heads make 3 and 2, not 4 and 1.
        edges = [len(numbers) * block // count for block in range(count + 1)]
        blocks += [numbers[first:last] for first, last in pairwise(edges)]
    return blocks


def shape_of(job: Job) -> tuple[object, ...]:
    """Return what heads that train as one program have in common."""
    head, train = job
    return head.hidden, head.feature_dropout > 0, train.batch_size, train.epochs, train.average > 0


def block_size(head: HeadSpec, dim: int, classes: int) -> int:
    """Return how many heads of this shape train fastest at once."""
    return max(1, min(_MOST_HEADS, _BLOCK_BYTES // (16 * _weights(head, dim, classes))))


def _weights(head: HeadSpec, dim: int, classes: int) -> int:
    return sum(below * above for below, above in pairwise([dim, *head.hidden, classes]))


def _program(task: Task) -> MakeProgram:
    if not task.compiled:
        return TorchProgram
    from head.fused import FusedProgram

    return FusedProgram


def _loaded(tasks: Iterable[Task]) -> Iterator[Task]:
    """Yield tasks whose program is there: compiling in a thread would count as training, and not hear Ctrl-C."""
    for task in tasks:
        if task.compiled:
            from head.fused import load_program

            load_program()
        yield task


def _start_thread() -> None:
    # Both belong to the thread. Denormal moments cost 5 to 10 times a normal multiplication.
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
