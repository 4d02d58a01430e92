"""Many heads at once: those of one shape in blocks, and the blocks side by side on the threads of the machine.

Each head ends where :func:`xfeat.head.training.fit.fit_head` alone would have brought it, within float tolerance.
docs/decisions/0040 has what was measured.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from itertools import islice
from queue import SimpleQueue
from threading import Event
from typing import TypeGuard

import torch

from xfeat.featurize.errors import DeviceError
from xfeat.featurize.gpu.memory import is_out_of_memory
from xfeat.head.batched.blocks import divide, matrix_weights
from xfeat.head.batched.engine import Job
from xfeat.head.batched.torch_engine import TorchEngine
from xfeat.head.batched.training import BlockTraining, OpenEngine, Outcome
from xfeat.head.data.rows import MOST_READERS, AnyRows, DiskRows

logger = logging.getLogger(__name__)

# The engines of a CPU; any other backend is a GPU, such as cuda:0.
TORCH, NUMBA = "torch", "numba"
# Weights times rows times epochs of a head, a fifth of a second alone, above which the compiled engine is used: loading
# it takes 0.7 s, and compiling it, once on a machine, 12 s. It is decided for each head and not for a whole sweep, so
# that a resumed sweep, or one that tries a few at a time, computes as before. Few weights take as long as more.
_LEAST_WORK_TO_COMPILE = 1.5e9
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


@dataclass(frozen=True)
class Task:
    """Heads to train as one block.

    Attributes:
        jobs: number to layers and optimisation; see :func:`xfeat.head.batched.blocks.shape_of` for what they must
            share.
        load: returns training and validation rows when it is their turn.
        backend: :data:`TORCH`, :data:`NUMBA` or a GPU.
    """

    jobs: Mapping[int, Job]
    load: Callable[[], tuple[AnyRows, AnyRows | None]]
    backend: str = TORCH


def threads_for(rows: AnyRows, backend: str | None = None) -> int:
    """Return how many blocks train at a time: as many as torch has threads, and as buffers have room in memory.

    On a GPU it is one: a block is as large as its memory allows.
    """
    if is_gpu(backend):
        return 1
    return min(torch.get_num_threads(), MOST_READERS if isinstance(rows, DiskRows) else sys.maxsize)


def tasks_on(
    jobs: Mapping[int, Job],
    rows: AnyRows,
    valid: AnyRows | None,
    *,
    classes: int,
    threads: int,
    backend: str | None = None,
) -> list[Task]:
    """Divide jobs on the same rows into blocks, as :func:`xfeat.head.batched.blocks.divide` does.

    Args:
        jobs: number to layers and optimisation.
        rows: training rows.
        valid: validation rows, or ``None`` to keep the last epoch.
        classes: number of classes C.
        threads: how many blocks train at a time.
        backend: :data:`TORCH` or :data:`NUMBA` on the CPU, by default the faster of them, or a GPU such as ``cuda:0``.

    Raises:
        DeviceError: if a GPU cannot hold the features.
    """
    room = None
    if is_gpu(backend):
        rows, valid = _on_gpu(rows, backend), None if valid is None else _on_gpu(valid, backend)
        room = free_bytes(backend)
    tasks = []
    for block in divide(jobs, rows.dim, classes, threads, one_seed=isinstance(rows, DiskRows), room=room):
        chosen = backend or (NUMBA if worth_compiling(next(iter(block.values())), rows, classes) else TORCH)
        if chosen == NUMBA:  # now: in a thread, compiling would count as training and not hear Ctrl-C
            from xfeat.head.batched.compiled.engine import compile_steps

            compile_steps()
        tasks.append(Task(block, lambda: (rows, valid), chosen))
    return tasks


def fit_tasks(tasks: Iterable[Task], *, classes: int, threads: int) -> Generator[FittedBlock]:
    """Train several blocks of heads, each on rows of its own, and yield them as they are done.

    Closing the generator ends what is under way within some steps.

    Args:
        tasks: the blocks; the next is asked for when a thread is free.
        classes: number of classes C.
        threads: blocks at a time.
    """
    stop, waiting = Event(), iter(tasks)
    threads_before = torch.get_num_threads()
    # Not concurrent.futures.wait: Ctrl-C while it takes the futures' locks leaves them taken for ever.
    done: SimpleQueue[Future[FittedBlock]] = SimpleQueue()
    running = 0
    pool = ThreadPoolExecutor(threads, thread_name_prefix="block", initializer=_start_thread)
    try:
        while True:
            # No more than there are threads: the caller may stop, and then nothing waits in a queue.
            for task in islice(waiting, threads - running):
                pool.submit(_fit_block, task, classes, stop).add_done_callback(done.put)
                running += 1
            if not running:
                return
            future = done.get()
            running -= 1
            yield future.result()
    finally:
        stop.set()
        pool.shutdown()
        torch.set_num_threads(threads_before)


def _fit_block(task: Task, classes: int, stop: Event) -> FittedBlock:
    start = time.monotonic()
    return FittedBlock(_fit_in_parts(task, task.jobs, classes, stop), time.monotonic() - start)


def _fit_in_parts(task: Task, jobs: Mapping[int, Job], classes: int, stop: Event) -> dict[int, Outcome]:
    """Train a block, or, if a GPU has too little memory for it, its halves one after the other."""
    try:
        block = BlockTraining(list(jobs.values()), *task.load(), classes, _engine_of(task.backend))
        return dict(zip(jobs, block.run(stop), strict=True))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        shortage = str(error).partition("\n")[0]
    torch.cuda.empty_cache()  # only here: the exception held all that was computed
    if len(jobs) == 1:
        raise DeviceError(
            f"a head does not fit into the memory of {task.backend}",
            expected="room for its weights, two moments and a batch",
            found=shortage,
            fix="train on the CPU with --device cpu, or free GPU memory by stopping other processes",
        )
    logger.warning("%s has no room for %d heads at once: trying half as many", task.backend, len(jobs))
    numbers = list(jobs)
    outcomes: dict[int, Outcome] = {}
    for half in (numbers[::2], numbers[1::2]):
        outcomes |= _fit_in_parts(task, {number: jobs[number] for number in half}, classes, stop)
    return outcomes


def is_gpu(backend: str | None) -> TypeGuard[str]:
    """Tell whether this is a GPU."""
    return backend is not None and backend.startswith("cuda")


def free_bytes(gpu: str) -> int:
    """Return how much memory of a GPU is free or cached by torch."""
    free, _ = torch.cuda.mem_get_info(gpu)
    return int(free) + torch.cuda.memory_reserved(gpu) - torch.cuda.memory_allocated(gpu)


def worth_compiling(job: Job, rows: AnyRows, classes: int) -> bool:
    """Tell whether the compiled engine trains such a head in less time, the time to load it included."""
    head, train = job
    work = max(_LEAST_WEIGHTS, matrix_weights(head, rows.dim, classes)) * len(rows.labels) * train.epochs
    return work >= _LEAST_WORK_TO_COMPILE and can_compile()


@cache
def can_compile() -> bool:
    """Tell whether numba is installed, and the processor has the instructions that the compiled engine needs."""
    if find_spec("numba") is None:
        return False
    try:
        from numba.core.codegen import get_host_cpu_features
    except ImportError as error:  # it refuses a numpy that is newer than itself
        logger.warning("numba cannot be used, and torch trains the heads: %s", error)
        return False
    return "+fma" in get_host_cpu_features()


def _on_gpu(rows: AnyRows, gpu: str) -> AnyRows:
    if isinstance(rows, DiskRows):  # each buffer is moved when it has been read
        return rows
    try:
        return rows._replace(features=rows.features.to(torch.device(gpu)))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(
            f"{gpu} cannot hold the features",
            expected=f"{len(rows.labels):,} rows of {rows.dim} float32 features",
            found=str(error).partition("\n")[0],
            fix="read them in blocks with a smaller --memory-mb, or train with --device cpu",
        ) from error


def _engine_of(backend: str) -> OpenEngine:
    if backend == NUMBA:
        from xfeat.head.batched.compiled.engine import CompiledEngine

        return CompiledEngine
    return partial(TorchEngine, device=backend if is_gpu(backend) else "cpu")


def _start_thread() -> None:
    # Both are settings of the thread. Denormal moments cost 5 to 10 times a normal multiplication.
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
