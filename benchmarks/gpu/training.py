"""Sweeps: do heads end on the GPU as they would alone on the CPU, and how fast?"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace

import torch
from gpu.report import Report

from xfeat.head.batched.engine import Job
from xfeat.head.batched.scheduler import TORCH, fit_tasks, tasks_on, threads_for
from xfeat.head.data.rows import Rows
from xfeat.head.specs import HeadSpec, TrainSpec
from xfeat.head.training.fit import FittedHead, fit_head

_DIM, _CLASSES, _BATCH = 1280, 2, 32
_RECIPES = {
    "default": (HeadSpec(), TrainSpec(epochs=3)),
    "no hidden layer, averaged": (HeadSpec(hidden=()), TrainSpec(epochs=3, average=0.9, label_smoothing=0.1)),
    "weight decay, focal loss": (HeadSpec(hidden=(64,)), TrainSpec(epochs=3, focal_gamma=2.0, weight_decay=0.01)),
}


def sweep(report: Report) -> None:
    """Compare heads trained at once with single trainings, and time blocks of heads."""
    backend = TORCH if report.small else report.device
    rows, valid = _rows(160 if report.small else 640, 0), _rows(128, 1)
    for name, (head, train) in _RECIPES.items():
        with report.part(f"equality, {name}"):
            jobs = _jobs(head, train, 4)
            worst = 0.0
            for one, job in zip(_fit(jobs, rows, valid, backend), jobs, strict=True):
                alone = fit_head(*job, rows, valid, classes=_CLASSES)
                with torch.inference_mode():
                    found, expected = (torch.softmax(each.model.cpu()(valid.features), 1) for each in (one, alone))
                worst = max(worst, float((found - expected).abs().max()))
            report.at_most(f"probabilities against single trainings, {name}", worst, 1e-3)
    for count in (8,) if report.small else (16, 64, 256):
        with report.part(f"{count} heads"):
            _time(report, count, rows, valid, backend)
    if not report.small:
        with report.part("64 heads on the CPU"):
            _time(report, 64, rows, valid, None)


def _time(report: Report, count: int, rows: Rows, valid: Rows, backend: str | None) -> None:
    head, train = _RECIPES["default"]
    jobs = _jobs(head, train, count)
    _fit(jobs[:2], rows, valid, backend)
    started, busy = time.perf_counter(), time.process_time()
    _fit(jobs, rows, valid, backend)
    taken, busy = time.perf_counter() - started, time.process_time() - busy
    steps = train.epochs * len(rows.labels) // _BATCH
    report.add(
        f"{count} heads on {backend or 'the CPU, compiled if numba is there'}",
        f"{count / taken:.1f} heads/s, {taken / steps * 1e3:.2f} ms per step",
        f"{busy / taken:.1f} cores busy",
    )


def _jobs(head: HeadSpec, train: TrainSpec, count: int) -> list[Job]:
    return [(head, replace(train, lr=1e-4 * 1.02**number, seed=number % 4)) for number in range(count)]


def _fit(jobs: list[Job], rows: Rows, valid: Rows, backend: str | None) -> list[FittedHead]:
    threads = threads_for(rows, backend)
    tasks = tasks_on(dict(enumerate(jobs)), rows, valid, classes=_CLASSES, threads=threads, backend=backend)
    with closing(fit_tasks(tasks, classes=_CLASSES, threads=threads)) as blocks:
        fitted = {number: outcome for block in blocks for number, outcome in block.outcomes.items()}
    return [fitted[number] for number in range(len(jobs))]


def _rows(count: int, seed: int) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(_CLASSES, (count,), generator=generator)
    centres = torch.randn(_CLASSES, _DIM, generator=torch.Generator().manual_seed(9)) * 0.12
    return Rows(torch.randn(count, _DIM, generator=generator) + centres[labels], labels)
