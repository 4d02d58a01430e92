"""Heads trained together end where :func:`xfeat.head.training.fit.fit_head`, the independent reference, brings each
alone."""

from __future__ import annotations

import math
import threading
from collections.abc import Generator

import pytest
import torch

from tests.head.batched.fitting import fit_heads
from tests.head.training.reference import reference_loss
from xfeat.featurize.errors import DivergedError
from xfeat.head.batched.blocks import divide, most_heads, shape_of
from xfeat.head.batched.engine import Job
from xfeat.head.batched.scheduler import NUMBA, TORCH, FittedBlock, fit_tasks, tasks_on
from xfeat.head.data.rows import Rows
from xfeat.head.specs import HeadSpec, TrainSpec
from xfeat.head.training.fit import FittedHead, fit_head
from xfeat.head.training.loss import TrainingLoss, balanced_weights

SMALL = HeadSpec(hidden=(10, 6))
Both = tuple[Rows, Rows]

# One shape a list: its heads train in one block, and differ in everything that may differ there.
BLOCKS = {
    "learning rates, decays and seeds": [
        (SMALL, TrainSpec(epochs=4, batch_size=8, lr=lr, weight_decay=decay, seed=seed))
        for lr, decay, seed in ((1e-3, 0.0, 0), (1e-2, 0.0, 0), (3e-3, 1e-2, 1), (5e-4, 0.1, 2))
    ],
    "dropout, none beside some": [
        (HeadSpec(hidden=(10, 6), dropout=rate), TrainSpec(epochs=4, batch_size=8, lr=3e-3, seed=seed))
        for rate, seed in ((0.0, 0), (0.4, 0), (0.7, 3), (0.0, 3))
    ],
    "feature dropout": [
        (HeadSpec(hidden=(10,), feature_dropout=rate), TrainSpec(epochs=3, batch_size=8, seed=4)) for rate in (0.1, 0.5)
    ],
    "losses": [
        (
            SMALL,
            TrainSpec(epochs=4, batch_size=8, lr=3e-3, class_weight=weight, label_smoothing=smooth, focal_gamma=gamma),
        )
        for weight in ("none", "balanced")
        for smooth in (0.0, 0.1)
        for gamma in (0.0, 2.0)
    ],
    "schedules and patience": [
        (SMALL, TrainSpec(epochs=9, batch_size=8, lr=lr, schedule=schedule, patience=patience, seed=patience))
        for lr, schedule, patience in ((3e-2, "constant", 1), (3e-3, "cosine", 0), (3e-2, "cosine", 2))
    ],
    "averages of the weights": [
        (SMALL, TrainSpec(epochs=4, batch_size=8, lr=1e-2, average=decay, seed=5)) for decay in (0.5, 0.9, 0.99)
    ],
    "linear heads": [(HeadSpec(hidden=()), TrainSpec(epochs=3, batch_size=8, lr=lr)) for lr in (1e-3, 1e-2, 1e-1)],
}


def assert_same(found: FittedHead, expected: FittedHead) -> None:
    assert found.best_epoch == expected.best_epoch
    assert len(found.history) == len(expected.history)
    for one, other in zip(found.history, expected.history, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5, nan_ok=True)
    weights, wanted = found.model.state_dict(), expected.model.state_dict()
    assert weights.keys() == wanted.keys()
    for name, values in weights.items():
        torch.testing.assert_close(values, wanted[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("backend", [TORCH, NUMBA])
@pytest.mark.parametrize("what", BLOCKS)
def test_each_head_of_a_block_ends_as_it_would_alone(what: str, backend: str, rows: Both) -> None:
    jobs = BLOCKS[what]
    assert len(divide(dict(enumerate(jobs)), 12, 3)) == 1
    for fitted, job in zip(fit_heads(jobs, *rows, classes=3, backend=backend), jobs, strict=True):
        assert_same(fitted, fit_head(*job, *rows, classes=3))


def test_blocks_of_different_shapes_come_back_in_order(rows: Both) -> None:
    jobs = [job for block in zip(*BLOCKS.values(), strict=False) for job in block]
    assert len({shape_of(job) for job in jobs}) > 3
    for fitted, job in zip(fit_heads(jobs, *rows, classes=3), jobs, strict=True):
        assert_same(fitted, fit_head(*job, *rows, classes=3))


@pytest.mark.parametrize("backend", [TORCH, NUMBA])
def test_views_are_drawn_as_each_head_alone_draws_them(backend: str, rows: Both) -> None:
    train, valid = rows
    noise = torch.randn(len(train.labels), 3, 12, generator=torch.Generator().manual_seed(3))
    views = Rows(train.features[:, None] + 0.3 * noise, train.labels)
    jobs = [(SMALL, TrainSpec(epochs=3, batch_size=8, seed=seed)) for seed in (0, 0, 1)]
    for fitted, job in zip(fit_heads(jobs, views, valid, classes=3, backend=backend), jobs, strict=True):
        assert_same(fitted, fit_head(*job, views, valid, classes=3))


def test_without_validation_rows_the_last_epoch_is_kept(rows: Both) -> None:
    jobs = [(SMALL, TrainSpec(epochs=3, batch_size=8, seed=seed)) for seed in (0, 1)]
    for fitted, job in zip(fit_heads(jobs, rows[0], None, classes=3), jobs, strict=True):
        assert fitted.best_epoch == 3
        assert_same(fitted, fit_head(*job, rows[0], None, classes=3))


def fit_blocks(jobs: list[Job], rows: Both, *, threads: int = 1, backend: str = TORCH) -> Generator[FittedBlock]:
    tasks = tasks_on(dict(enumerate(jobs)), *rows, classes=3, threads=threads, backend=backend)
    return fit_tasks(tasks, classes=3, threads=threads)


@pytest.mark.parametrize("backend", [TORCH, NUMBA])
def test_a_diverging_head_does_not_touch_its_neighbours(backend: str, rows: Both) -> None:
    sound = (SMALL, TrainSpec(epochs=3, batch_size=8))
    wild = (SMALL, TrainSpec(epochs=3, batch_size=8, lr=1e38))
    [block] = list(fit_blocks([wild, sound], rows, backend=backend))
    assert isinstance(block.outcomes[0], DivergedError)
    assert "diverged" in str(block.outcomes[0])
    fitted = block.outcomes[1]
    assert isinstance(fitted, FittedHead)
    assert_same(fitted, fit_head(*sound, *rows, classes=3))
    with pytest.raises(DivergedError, match="diverged"):
        fit_heads([wild, sound], *rows, classes=3)


def test_the_callers_random_state_and_threads_are_left_alone(rows: Both) -> None:
    torch.manual_seed(11)
    torch.set_num_threads(threads := 2)
    before = torch.get_rng_state()
    fit_heads(BLOCKS["linear heads"], *rows, classes=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_closing_ends_what_is_under_way(rows: Both) -> None:
    jobs = [(SMALL, TrainSpec(epochs=1, batch_size=8)), (SMALL, TrainSpec(epochs=100_000, batch_size=8))]
    blocks = fit_blocks(jobs, rows, threads=2)
    assert list(next(blocks).outcomes) == [0]
    blocks.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("block")]


def test_blocks_are_as_equal_as_can_be_and_hold_every_job_once() -> None:
    jobs = [(HeadSpec(hidden=(512, 128)), TrainSpec(seed=seed)) for seed in range(5)]
    jobs += [(HeadSpec(hidden=()), TrainSpec(seed=seed)) for seed in range(3)]
    blocks = divide(dict(enumerate(jobs)), 1280, 3)
    assert sorted(number for block in blocks for number in block) == list(range(8))
    assert sorted(map(len, blocks)) == [1, 2, 2, 3]
    assert most_heads((HeadSpec(hidden=(512, 128)), TrainSpec()), 1280, 3) == 2
    assert most_heads((HeadSpec(hidden=(4096, 4096)), TrainSpec()), 1280, 3) == 1


def test_few_jobs_still_occupy_all_threads() -> None:
    jobs = [(HeadSpec(hidden=()), TrainSpec(seed=seed)) for seed in range(4)]
    assert [len(block) for block in divide(dict(enumerate(jobs)), 12, 3, threads=2)] == [2, 2]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_stacked_loss_and_its_gradient_are_those_of_each_head(
    gamma: float, smoothing: float, weighted: bool
) -> None:
    """Reference: ``functional.cross_entropy`` and autograd, beside a plain head in the same stack."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 9, 3, generator=generator, requires_grad=True)
    labels = torch.randint(3, (2, 9), generator=generator)
    weights = torch.stack([torch.ones(3), balanced_weights(labels[1], 3) if weighted else torch.ones(3)])
    specs = [TrainSpec(), TrainSpec(focal_gamma=gamma, label_smoothing=smoothing)]
    losses = TrainingLoss(specs, weights)(logits, labels)
    expected = [
        reference_loss(logits[head], labels[head], specs[head], weights[head] if head and weighted else None)
        for head in (0, 1)
    ]
    torch.testing.assert_close(losses, torch.stack(expected))
    assert not any(math.isnan(value) for value in losses.tolist())
    found = torch.autograd.grad(losses.sum(), logits, retain_graph=True)[0]
    torch.testing.assert_close(found, torch.autograd.grad(sum(expected), logits)[0])
