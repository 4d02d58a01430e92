"""Many heads at once: those of one shape as one tensor program, in blocks that train side by side.

Each head ends where :func:`xfeat.head.training.fit.fit_head` alone would have brought it, within float tolerance.
docs/decisions/0040 says what was measured.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from itertools import islice
from threading import Event
from typing import TypeGuard

import torch
from torch import Tensor

from xfeat.featurize.errors import DeviceError, DivergedError
from xfeat.featurize.system.devices import is_out_of_memory
from xfeat.head.batched.blocks import divide, matrix_weights
from xfeat.head.batched.program import TorchProgram
from xfeat.head.batched.training import BlockTraining, Job, MakeProgram, Outcome
from xfeat.head.data.rows import MOST_READERS, AnyRows, DiskRows
from xfeat.head.training.fit import FittedHead

logger = logging.getLogger(__name__)

# What computes the steps; anything else is a GPU, such as cuda:0.
TORCH, NUMBA = "torch", "numba"
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
    by: str | None = None,
) -> list[FittedHead]:
    """Train many heads on the same rows; :func:`xfeat.head.training.fit.fit_head` for each, faster.

    Args:
        jobs: layers and optimisation of each.
        rows: training rows.
        valid: validation rows, or ``None`` to keep the last epoch.
        classes: number of classes C.
        class_weights: float32 (C,), instead of those that the specs ask for.
        by: :data:`TORCH` or :data:`NUMBA` on the CPU, by default the quicker of them, or a GPU such as ``cuda:0``.

    Returns:
        In the order of ``jobs``.

    Raises:
        DivergedError: if the loss of one of them is not a number from the first epoch on.
        DeviceError: if a head does not fit into the GPU's memory.
    """
    fitted: dict[int, FittedHead] = {}
    threads = threads_for(rows, by)
    tasks = tasks_on(dict(enumerate(jobs)), rows, valid, classes=classes, threads=threads, by=by)
    with closing(fit_tasks(tasks, classes=classes, class_weights=class_weights, threads=threads)) as blocks:
        for block in blocks:
            for number, outcome in block.outcomes.items():
                if isinstance(outcome, DivergedError):
                    raise outcome
                fitted[number] = outcome
    return [fitted[number] for number in range(len(jobs))]


def threads_for(rows: AnyRows, by: str | None = None) -> int:
    """Return how many blocks train at a time: as many as torch has threads, and buffers have room in memory.

    On a GPU it is one: a block is as large as its memory allows, so that there is nothing to do beside it.
    """
    if is_gpu(by):
        return 1
    return min(torch.get_num_threads(), MOST_READERS if isinstance(rows, DiskRows) else sys.maxsize)


@dataclass(frozen=True)
class Task:
    """Heads to train as one program.

    Attributes:
        jobs: number to layers and optimisation; see :func:`xfeat.head.batched.blocks.shape_of` for what they must
            share.
        load: gives training and validation rows when it is their turn.
        by: what computes them, see :func:`fit_heads`.
    """

    jobs: Mapping[int, Job]
    load: Callable[[], tuple[AnyRows, AnyRows | None]]
    by: str = TORCH


def tasks_on(
    jobs: Mapping[int, Job],
    rows: AnyRows,
    valid: AnyRows | None,
    *,
    classes: int,
    threads: int,
    by: str | None = None,
) -> list[Task]:
    """Divide jobs on the same rows into blocks, as :func:`xfeat.head.batched.blocks.divide` does; see
    :func:`fit_heads`."""
    numbers, room = list(jobs), None
    if is_gpu(by):
        rows, valid = _sent(rows, by), None if valid is None else _sent(valid, by)
        room = free_bytes(by)
    one_order = isinstance(rows, DiskRows)
    blocks = divide(list(jobs.values()), rows.dim, classes, threads, one_order=one_order, room=room)
    tasks = []
    for block in blocks:
        own = {numbers[place]: jobs[numbers[place]] for place in block}
        chosen = by or (NUMBA if worth_compiling(own[numbers[block[0]]], rows, classes) else TORCH)
        tasks.append(Task(own, lambda: (rows, valid), chosen))
    return tasks


def is_gpu(by: str | None) -> TypeGuard[str]:
    """Tell whether this is a GPU."""
    return by is not None and by.startswith("cuda")


def free_bytes(gpu: str) -> int:
    """Return how much memory of a GPU can be had: what nobody has, and what torch holds for later."""
    free, _ = torch.cuda.mem_get_info(gpu)
    return int(free) + torch.cuda.memory_reserved(gpu) - torch.cuda.memory_allocated(gpu)


def worth_compiling(job: Job, rows: AnyRows, classes: int) -> bool:
    """Tell whether the compiled program trains such a head in less time here, with what it takes to load it."""
    head, train = job
    work = max(_LEAST_WEIGHTS, matrix_weights(head, rows.dim, classes)) * len(rows.labels) * train.epochs
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

    Closing the generator ends what is under way within some steps.

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

        def outcomes(jobs: Mapping[int, Job]) -> dict[int, Outcome]:
            block = BlockTraining(list(jobs.values()), *task.load(), classes, class_weights, _program(task.by))
            return dict(zip(jobs, block.run(stop), strict=True))

        return FittedBlock(_in_memory(task, outcomes), time.monotonic() - start)

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


def _sent(rows: AnyRows, gpu: str) -> AnyRows:
    try:
        return rows.to(torch.device(gpu))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(
            f"{gpu} cannot hold the features",
            expected=f"{len(rows.labels):,} rows of {rows.dim} float32 features",
            found=str(error).partition("\n")[0],
            fix="read them in blocks with a smaller --memory-mb, or train with --device cpu",
        ) from error


def _in_memory(task: Task, outcomes: Callable[[Mapping[int, Job]], dict[int, Outcome]]) -> dict[int, Outcome]:
    """Train a block, or, if a GPU has too little memory for it, its halves one after the other."""
    parts, found = [dict(task.jobs)], {}
    while parts:
        part = parts.pop()
        try:
            found.update(outcomes(part))
            continue
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            shortage = str(error).partition("\n")[0]
        torch.cuda.empty_cache()  # only here: the exception held all that was computed
        if len(part) == 1:
            raise DeviceError(
                f"a head does not fit into the memory of {task.by}",
                expected="room for its weights, two moments and a batch",
                found=shortage,
                fix="train on the CPU with --device cpu, or end what else runs on the GPU",
            )
        logger.warning("%s has no room for %d heads at once: trying half as many", task.by, len(part))
        numbers = list(part)
        parts += [{number: part[number] for number in half} for half in (numbers[1::2], numbers[::2])]
    return {number: found[number] for number in task.jobs}


def _program(by: str) -> MakeProgram:
    if by == TORCH:
        return TorchProgram
    if is_gpu(by):
        return partial(TorchProgram, device=by)
    from xfeat.head.batched.compiled.program import FusedProgram

    return FusedProgram


def _loaded(tasks: Iterable[Task]) -> Iterator[Task]:
    """Yield tasks whose program is there: compiling in a thread would count as training, and not hear Ctrl-C."""
    for task in tasks:
        if task.by == NUMBA:
            from xfeat.head.batched.compiled.program import load_program

            load_program()
        yield task


def _start_thread() -> None:
    # Both belong to the thread. Denormal moments cost 5 to 10 times a normal multiplication.
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
