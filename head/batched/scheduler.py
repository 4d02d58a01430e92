"""Many heads at once: those of one shape in blocks, and the blocks side by side on the threads of the machine.

Each head ends where :func:`xfeat.head.training.fit.fit_head` alone would have brought it, within float tolerance.
docs/decisions/0040 has what was measured.
"""

from __future__ import annotations

import logging
import queue
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from itertools import islice
from threading import Event
from typing import TypeGuard

import torch
from torch import Tensor

from xfeat.featurize.errors import DeviceError
from xfeat.featurize.system.devices import is_out_of_memory
from xfeat.head.batched.blocks import divide, matrix_weights
from xfeat.head.batched.torch_engine import TorchEngine
from xfeat.head.batched.training import BlockTraining, Job, OpenEngine, Outcome
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
    numbers, room = list(jobs), None
    if is_gpu(backend):
        rows, valid = _on_gpu(rows, backend), None if valid is None else _on_gpu(valid, backend)
        room = free_bytes(backend)
    one_seed = isinstance(rows, DiskRows)
    tasks = []
    for block in divide(list(jobs.values()), rows.dim, classes, threads, one_seed=one_seed, room=room):
        own = {numbers[place]: jobs[numbers[place]] for place in block}
        chosen = backend or (NUMBA if worth_compiling(own[numbers[block[0]]], rows, classes) else TORCH)
        tasks.append(Task(own, lambda: (rows, valid), chosen))
    return tasks


def fit_tasks(
    tasks: Iterable[Task],
    *,
    classes: int,
    class_weights: Tensor | None = None,
    threads: int | None = None,
    time_limit_s: float | None = None,
) -> Generator[FittedBlock]:
    """Train several blocks of heads, each on rows of its own, and yield them as they are done.

    Closing the generator ends what is under way within some steps.

    Args:
        tasks: the blocks; the next is asked for when a thread is free.
        classes: number of classes C.
        class_weights: float32 (C,), instead of those that the specs ask for.
        threads: blocks at a time; by default as many as torch has threads.
        time_limit_s: after which unfinished blocks are given up.
    """
    stop = Event()
    deadline = None if time_limit_s is None else time.monotonic() + time_limit_s
    threads_before = torch.get_num_threads()
    threads = threads or threads_before

    def train(task: Task) -> FittedBlock:
        start = time.monotonic()

        def outcomes(jobs: Mapping[int, Job]) -> dict[int, Outcome]:
            open_engine = _engine_of(task.backend)
            block = BlockTraining(list(jobs.values()), *task.load(), classes, class_weights, open_engine)
            return dict(zip(jobs, block.run(stop), strict=True))

        return FittedBlock(_in_parts_that_fit(task, outcomes), time.monotonic() - start)

    waiting = _with_compiled_steps(tasks)
    # Not concurrent.futures.wait: Ctrl-C while it takes the futures' locks leaves them taken for ever.
    done: queue.SimpleQueue[Future[FittedBlock]] = queue.SimpleQueue()
    running = 0
    pool = ThreadPoolExecutor(threads, thread_name_prefix="block", initializer=_start_thread)
    try:
        while True:
            # No more than there are threads: the caller may stop, and then nothing waits in a queue.
            for task in islice(waiting, threads - running):
                pool.submit(train, task).add_done_callback(done.put)
                running += 1
            if not running:
                return
            try:
                future = done.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
            except queue.Empty:  # the time is up
                return
            running -= 1
            yield future.result()
    finally:
        stop.set()
        pool.shutdown()
        torch.set_num_threads(threads_before)


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


def _in_parts_that_fit(task: Task, train: Callable[[Mapping[int, Job]], dict[int, Outcome]]) -> dict[int, Outcome]:
    """Train a block, or, if a GPU has too little memory for it, its halves one after the other."""
    parts, found = [dict(task.jobs)], {}
    while parts:
        part = parts.pop()
        try:
            found.update(train(part))
            continue
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            shortage = str(error).partition("\n")[0]
        torch.cuda.empty_cache()  # only here: the exception held all that was computed
        if len(part) == 1:
            raise DeviceError(
                f"a head does not fit into the memory of {task.backend}",
                expected="room for its weights, two moments and a batch",
                found=shortage,
                fix="train on the CPU with --device cpu, or free GPU memory by stopping other processes",
            )
        logger.warning("%s has no room for %d heads at once: trying half as many", task.backend, len(part))
        numbers = list(part)
        parts += [{number: part[number] for number in half} for half in (numbers[1::2], numbers[::2])]
    return {number: found[number] for number in task.jobs}


def _engine_of(backend: str) -> OpenEngine:
    if backend == TORCH:
        return TorchEngine
    if is_gpu(backend):
        return partial(TorchEngine, device=backend)
    from xfeat.head.batched.compiled.engine import CompiledEngine

    return CompiledEngine


def _with_compiled_steps(tasks: Iterable[Task]) -> Iterator[Task]:
    """Yield tasks whose engine is compiled: in a thread, compiling would count as training and not hear Ctrl-C."""
    for task in tasks:
        if task.backend == NUMBA:
            from xfeat.head.batched.compiled.engine import compile_steps

            compile_steps()
        yield task


def _start_thread() -> None:
    # Both are settings of the thread. Denormal moments cost 5 to 10 times a normal multiplication.
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
