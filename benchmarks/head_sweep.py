"""Heads a second: a loop over ``fit_head`` against blocks of heads as one program, in the same run.

    python benchmarks/head_sweep.py [--heads 16] [--rounds 5] [--rows 640] [--dim 1280] [--epochs 10] [--commands]

The loop is the best that one head at a time does: fused Adam, denormals flushed, one thread (more are slower for
batches of 32 rows). Rounds of both take turns; the fastest of each counts, since other programs only make one slower.
The last column is the ratio of processor time: what the blocks gain without a second core. Blocks are trained by torch
and, where numba is installed, by the compiled program; a star marks the one that a sweep of such heads takes on the
processor. Where there is a GPU, its blocks come last; more heads (--heads 256) fill it better.

``--commands`` measures something else: what ``xhead sweep`` saves who would otherwise type ``xhead train`` in a loop in
the shell, on the drawn data of this repository. There, most of the time goes into starting Python and importing torch,
and each training also writes a report. It is no figure of the blocks.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from xfeat.head.batched import scheduler
from xfeat.head.batched.blocks import divide
from xfeat.head.batched.engine import Job
from xfeat.head.data.rows import Rows
from xfeat.head.specs import HeadSpec, TrainSpec
from xfeat.head.sweep.space import DEFAULT_AXES, SweepSpec, axis_text
from xfeat.head.training.fit import fit_head

ROOT = Path(__file__).parents[1]
SHAPES = {"512,128": (512, 128), "256": (256,), "linear": ()}
RATES = (1e-4, 3e-4, 1e-3, 3e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("heads", 16), ("rounds", 5), ("rows", 640), ("dim", 1280), ("epochs", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--commands", action="store_true")
    options = parser.parse_args()
    if options.commands:
        compare_commands(options.rounds)
        return
    rows, valid = draw(options.rows, options.dim, 0), draw(options.rows // 5, options.dim, 1)
    threads = torch.get_num_threads()
    print(f"{options.rows} rows of {options.dim} features, batches of 32, {threads} threads, torch {torch.__version__}")
    print(
        f"{'head':>8} {'what differs':>14} {'block':>6} {'backend':>9} {'loop, heads/s':>14} {'blocks, heads/s':>16} "
        f"{'ratio':>6} {'processor':>10}"
    )
    for name, hidden in SHAPES.items():
        head = HeadSpec(hidden=hidden)
        for differs, jobs in {
            "learning rates": [(head, train(options.epochs, lr=RATES[n % 4] * (1 + n))) for n in range(options.heads)],
            "seeds": [(head, train(options.epochs, seed=n)) for n in range(options.heads)],
        }.items():
            (alone, alone_cpu), *both = race(jobs, rows, valid, options.rounds)
            chosen = scheduler.NUMBA if scheduler.worth_compiling(jobs[0], rows, 3) else scheduler.TORCH
            for backend, (together, together_cpu) in zip(backends_here(), both, strict=True):
                room = scheduler.free_bytes(backend) if scheduler.is_gpu(backend) else None
                block = max(map(len, divide(dict(enumerate(jobs)), options.dim, 3, 1 if room else threads, room=room)))
                marked = backend + "*" * (backend == chosen)
                print(
                    f"{name:>8} {differs:>14} {block:6} {marked:>9} {len(jobs) / alone:14.2f} "
                    f"{len(jobs) / together:16.2f} {alone / together:6.2f} {alone_cpu / together_cpu:10.2f}",
                    flush=True,
                )


def train(epochs: int, *, lr: float = 5e-4, seed: int = 0) -> TrainSpec:
    return TrainSpec(epochs=epochs, lr=lr, seed=seed)


def compare_commands(rounds: int) -> None:
    """Print the time of one sweep of the default grid, and of as many trainings, of which some are measured."""
    typed = [
        [part for name, value in settings.items() for part in (f"--{name}", axis_text(name, (value,)))]
        for settings in SweepSpec(axes=DEFAULT_AXES).combinations()
    ]
    with tempfile.TemporaryDirectory() as folder:
        call(folder, "xfeat", "featurize", str(ROOT / "data"), "--backbone", "efficientnet-lite0")
        trainings, sweeps = [], []
        for number in range(rounds):
            trainings.append(seconds(partial(call, folder, "xhead", "train", *typed[number % len(typed)]))[0])
            sweeps.append(seconds(partial(call, folder, "xhead", "sweep", "--name", f"sweep{number}"))[0])
    loop = min(trainings) * len(typed)
    print(
        f"{len(typed)} heads, whole processes: a loop of xhead train {loop:.1f} s ({rounds} of them measured), ", end=""
    )
    print(f"xhead sweep {min(sweeps):.1f} s: {loop / min(sweeps):.1f} times")


def call(folder: str, program: str, *arguments: str) -> None:
    command = [str(Path(sys.executable).with_name(program)), *arguments]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


Seconds = tuple[float, float]


def race(jobs: list[Job], rows: Rows, valid: Rows, rounds: int) -> list[Seconds]:
    """Return wall and processor seconds for all jobs: one at a time, and in blocks by each of :func:`backends_here`."""
    # A few heads stand for the loop: each costs the same.
    few = jobs[:4]
    ways: list[Callable[[], object]] = [lambda: [fit_head(*job, rows, valid, classes=3) for job in few]]
    for backend in backends_here():
        ways.append(partial(train_in_blocks, jobs, rows, valid, backend))
        train_in_blocks(jobs[:1], rows, valid, backend)  # what is slower the first time
    measured = [[seconds(way) for way in ways] for _ in range(rounds)]
    alone, *together = [fastest(list(rounds)) for rounds in zip(*measured, strict=True)]
    share = len(jobs) / len(few)
    return [(alone[0] * share, alone[1] * share), *together]


def train_in_blocks(jobs: list[Job], rows: Rows, valid: Rows, backend: str) -> None:
    threads = scheduler.threads_for(rows, backend)
    tasks = scheduler.tasks_on(dict(enumerate(jobs)), rows, valid, classes=3, threads=threads, backend=backend)
    for _ in scheduler.fit_tasks(tasks, classes=3, threads=threads):
        pass


def backends_here() -> list[str]:
    """Return what can train blocks on this machine."""
    compiled = [scheduler.NUMBA] * scheduler.can_compile()
    return [scheduler.TORCH, *compiled, *["cuda:0"] * torch.cuda.is_available()]


def fastest(measured: list[Seconds]) -> Seconds:
    return min(wall for wall, _ in measured), min(processor for _, processor in measured)


def seconds(work: Callable[[], object]) -> Seconds:
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def draw(count: int, dim: int, seed: int) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    means = torch.randn(3, dim, generator=torch.Generator().manual_seed(9)) * 0.1
    return Rows(means[labels] + torch.randn(count, dim, generator=generator), labels)


if __name__ == "__main__":
    main()
