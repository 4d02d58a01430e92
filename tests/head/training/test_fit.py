"""The training loop against plain loops over torch's own classes."""

from __future__ import annotations

import logging
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn
from torch.nn import functional

from tests.head.conftest import DIM, cloud
from tests.head.training.reference import reference_logits
from xfeat.featurize.errors import DivergedError
from xfeat.head.data.counter_rng import ORDER, key_of, permutation
from xfeat.head.data.rows import Rows, as_rows, batches
from xfeat.head.specs import HeadSpec, TrainSpec
from xfeat.head.training.adam import StackedAdam
from xfeat.head.training.fit import fit_head, learning_rate
from xfeat.head.training.loss import TrainingLoss, balanced_weights
from xfeat.head.training.network import build_head

SMALL = HeadSpec(hidden=(16, 8))


def drawn_rows(count: int, seed: int = 0, classes: int = 2) -> Rows:
    labels = np.arange(count) % classes
    return as_rows(cloud(labels, seed=seed), labels)


def weights(model: nn.Module) -> list[Tensor]:
    return list(model.state_dict().values())


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))


def test_the_default_head_is_the_tutorials_layer_for_layer() -> None:
    """Source: the tutorial's ``model_transfer._fc``."""
    tutorial = nn.Sequential(
        nn.BatchNorm1d(num_features=1280),
        nn.Linear(1280, 512),
        nn.ReLU(),
        nn.BatchNorm1d(512),
        nn.Linear(512, 128),
        nn.ReLU(),
        nn.BatchNorm1d(num_features=128),
        nn.Dropout(0.4),
        nn.Linear(128, 2),
    )
    assert str(build_head(HeadSpec(), dim=1280, classes=2)) == str(tutorial)


@pytest.mark.parametrize(
    ("spec", "kinds"),
    [
        (HeadSpec(hidden=()), ["BatchNorm1d", "Dropout", "Linear"]),
        (HeadSpec(hidden=(), feature_dropout=0.2), ["Dropout", "BatchNorm1d", "Dropout", "Linear"]),
    ],
)
def test_a_linear_head_and_feature_dropout_have_their_layers(spec: HeadSpec, kinds: list[str]) -> None:
    assert [type(layer).__name__ for layer in build_head(spec, dim=5, classes=3)] == kinds


def tutorials_loop(spec: TrainSpec, rows: Rows, valid: Rows) -> tuple[dict[str, Tensor], list[float]]:
    """The tutorial's loop with torch's own Adam and criterion, on tensors instead of images and our random numbers."""
    model = build_head(SMALL, dim=DIM, classes=2, seed=spec.seed)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=spec.lr, fused=True)
    lowest, kept, losses, step = math.inf, {}, [], 0
    for epoch in range(1, spec.epochs + 1):
        order = permutation(key_of(spec.seed, ORDER, epoch), len(rows.labels))
        for batch in torch.split(order, spec.batch_size):
            optimizer.zero_grad()
            logits = reference_logits(model, rows.features[batch], seed=spec.seed, step=step)
            criterion(logits, rows.labels[batch]).backward()
            optimizer.step()
            step += 1
        model.eval()
        with torch.no_grad():
            losses.append(float(criterion(model(valid.features), valid.labels)))
        if losses[-1] < lowest:
            lowest, kept = losses[-1], {name: value.clone() for name, value in model.state_dict().items()}
    return kept, losses


def test_training_gives_the_weights_of_the_tutorials_loop() -> None:
    """Reference: :func:`tutorials_loop`; the learning rate is high enough for the best epoch not to be the last."""
    rows, valid, spec = drawn_rows(96), drawn_rows(30, seed=1), TrainSpec(lr=0.03, epochs=8, seed=4)
    kept, losses = tutorials_loop(spec, rows, valid)
    fitted = fit_head(SMALL, spec, rows, valid, classes=2)
    assert [record.valid_loss for record in fitted.history] == pytest.approx(losses, abs=1e-6)
    assert fitted.best_epoch == int(np.argmin(losses)) + 1 < spec.epochs
    for name, value in fitted.model.state_dict().items():
        torch.testing.assert_close(value, kept[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_a_step_of_adam_is_torchs_to_the_bit(weight_decay: float) -> None:
    """Reference: ``torch.optim.Adam(fused=True)``."""
    torch.manual_seed(0)
    ours = [torch.randn(5, 3), torch.randn(3)]
    theirs = [value.clone().requires_grad_() for value in ours]
    optimizer = torch.optim.Adam(theirs, lr=0.01, weight_decay=weight_decay, fused=True)
    stacked = [value.unsqueeze(0) for value in ours]
    adam = StackedAdam(stacked, [weight_decay])
    for _ in range(4):
        gradients = [torch.randn_like(value) for value in ours]
        for value, gradient in zip(theirs, gradients, strict=True):
            value.grad = gradient.clone()
        optimizer.step()
        adam.step(stacked, [gradient.unsqueeze(0) for gradient in gradients], [0.01])
    assert all(torch.equal(a, b.detach()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("weight_decays", [[0.0, 0.0, 0.0], [0.1, 0.0, 0.3]])
def test_the_step_of_a_gpu_moves_all_heads_as_one_call_per_head_would(weight_decays: list[float]) -> None:
    """With other rates in each step, as schedules give them, and with a head less after two."""
    torch.manual_seed(0)
    one = [torch.randn(3, 5, 4), torch.randn(3, 4)]
    other = [values.clone() for values in one]
    per_head, at_once = StackedAdam(one, weight_decays), StackedAdam(other, weight_decays)
    rates = [0.01, 0.1, 0.003]
    for step in range(5):
        if step == 2:
            one, other, rates = [values[:2] for values in one], [values[:2] for values in other], rates[:2]
            per_head.keep([0, 1])
            at_once.keep([0, 1])
        gradients = [torch.randn_like(values) for values in one]
        now = [rate / (step // 2 + 1) for rate in rates]
        per_head.step(one, gradients, now)
        at_once._count += 1
        at_once._step_at_once(other, gradients, list(zip(now, at_once._decays, strict=True)))
    for values, expected in zip(other, one, strict=True):
        torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "changes", [{}, {"average": 0.9}, {"focal_gamma": 2.0, "label_smoothing": 0.1, "schedule": "cosine"}]
)
def test_the_same_seed_gives_the_same_bits(changes: dict[str, Any]) -> None:
    rows, valid = drawn_rows(70), drawn_rows(20, seed=1)
    first, second = (fit_head(SMALL, TrainSpec(epochs=3, seed=5, **changes), rows, valid, classes=2) for _ in range(2))
    assert same(first.model, second.model)
    assert first.history == second.history


def test_another_seed_gives_other_bits() -> None:
    rows, valid = drawn_rows(70), drawn_rows(20, seed=1)
    first, second = (fit_head(SMALL, TrainSpec(epochs=1, seed=s), rows, valid, classes=2) for s in (0, 1))
    assert not same(first.model, second.model)


@pytest.mark.parametrize("changes", [{}, {"average": 0.9}])
def test_the_callers_random_state_and_threads_stay_as_they_were(changes: dict[str, Any]) -> None:
    torch.manual_seed(9)
    torch.set_num_threads(threads := 2)
    before = torch.get_rng_state()
    fit_head(SMALL, TrainSpec(epochs=1, **changes), drawn_rows(20), drawn_rows(8), classes=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("count", "sizes"), [(64, [32, 32]), (65, [32, 33]), (66, [32, 32, 2]), (3, [3]), (33, [33])])
def test_a_single_row_left_over_joins_the_last_batch(count: int, sizes: list[int]) -> None:
    cut = list(batches(torch.arange(count), 32))
    assert [len(batch) for batch in cut] == sizes
    assert torch.equal(torch.cat(cut), torch.arange(count))


def test_a_learning_rate_that_diverges_at_once_is_named() -> None:
    with pytest.raises(DivergedError, match="diverged") as problem:
        fit_head(SMALL, TrainSpec(lr=1e38, epochs=3), drawn_rows(64), drawn_rows(20), classes=2)
    assert "1e+38" in str(problem.value)
    assert "--lr" in str(problem.value)


def test_training_that_diverges_later_keeps_the_best_epoch_and_warns(caplog: pytest.LogCaptureFixture) -> None:
    rows = drawn_rows(64)

    def poison(record: Any) -> None:
        if record.epoch == 2:
            rows.features[0, 0] = math.nan

    with caplog.at_level(logging.WARNING):
        fitted = fit_head(SMALL, TrainSpec(epochs=6), rows, drawn_rows(20), classes=2, progress=poison)
    assert len(fitted.history) == 3
    assert fitted.best_epoch <= 2
    assert all(torch.isfinite(value).all() for value in weights(fitted.model))
    assert "diverged in epoch 3" in caplog.text


def test_balanced_weights_are_scikit_learns() -> None:
    """Reference: ``sklearn.utils.class_weight.compute_class_weight``."""
    labels = np.array([0] * 7 + [1] * 2 + [2] * 3)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert balanced_weights(torch.from_numpy(labels), 3).numpy() == pytest.approx(expected)


def test_class_weights_shift_decisions_towards_the_rare_class() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    rows = as_rows(cloud(labels, separation=0.3), labels)
    positives = {
        kind: sum(
            int(fit_head(SMALL, spec, rows, rows, classes=2).logits(rows.features).argmax(1).sum())
            for spec in (TrainSpec(class_weight=kind, seed=seed) for seed in range(4))
        )
        for kind in ("none", "balanced")
    }
    assert positives["none"] < positives["balanced"]


def loss_of(logits: Tensor, labels: Tensor, spec: TrainSpec, weights: Tensor | None) -> Tensor:
    given = torch.ones(logits.shape[1]) if weights is None else weights
    return TrainingLoss([spec], given[None])(logits[None], labels[None])[0]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("gamma", "smoothing"), [(0.0, 0.0), (2.0, 0.0), (1.5, 0.2)])
def test_the_focal_loss_is_its_formula(gamma: float, smoothing: float, weighted: bool) -> None:
    """Reference: Lin et al. 2017, written out row by row in double precision."""
    torch.manual_seed(1)
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    class_weights = torch.tensor([1.0, 2.0, 0.5]) if weighted else None
    spec = TrainSpec(focal_gamma=gamma, label_smoothing=smoothing)
    total, norm = 0.0, 0.0
    for row, label in zip(logits.double(), labels.tolist(), strict=True):
        logs = row - row.exp().sum().log()
        weight = 1.0 if class_weights is None else float(class_weights[label])
        target = [(1 - smoothing) * (code == label) + smoothing / 3 for code in range(3)]
        loss = -sum(share * float(log) for share, log in zip(target, logs, strict=True))
        total += weight * (1 - math.exp(float(logs[label]))) ** gamma * loss
        norm += weight
    assert float(loss_of(logits, labels, spec, class_weights)) == pytest.approx(total / norm, rel=1e-5)


def test_plain_loss_is_cross_entropy() -> None:
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    torch.testing.assert_close(loss_of(logits, labels, TrainSpec(), None), functional.cross_entropy(logits, labels))


def test_the_cosine_schedule_is_torchs() -> None:
    """Reference: ``torch.optim.lr_scheduler.CosineAnnealingLR``, stepped once an epoch."""
    spec = TrainSpec(lr=0.1, epochs=7, schedule="cosine")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=7)
    for epoch in range(1, 8):
        assert learning_rate(spec, epoch) == pytest.approx(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()


def test_early_stopping_waits_its_patience_and_no_longer() -> None:
    """Reference: the validation losses of a run that was not stopped."""
    rows, valid = drawn_rows(64), drawn_rows(20, seed=7)
    full = fit_head(SMALL, TrainSpec(lr=0.05, epochs=30), rows, valid, classes=2)
    stopped = fit_head(SMALL, TrainSpec(lr=0.05, epochs=30, patience=3), rows, valid, classes=2)
    losses = [record.valid_loss for record in full.history]
    best = 0
    for epoch, loss in enumerate(losses):
        best = epoch if loss < losses[best] else best
        if epoch - best >= 3:
            break
    assert len(stopped.history) == epoch + 1 < 30
    assert stopped.best_epoch == best + 1
    assert stopped.history == full.history[: epoch + 1]


def test_the_average_of_the_weights_is_a_running_mean_of_all_steps() -> None:
    """Reference: the exponential average of the weights after every step, kept by hand."""
    rows = drawn_rows(64)
    spec = TrainSpec(epochs=1, batch_size=16, average=0.75)
    model = build_head(SMALL, dim=DIM, classes=2, seed=spec.seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=spec.lr, fused=True)
    average: dict[str, Tensor] = {}
    for step, batch in enumerate(batches(permutation(key_of(spec.seed, ORDER, 1), 64), 16)):
        logits = reference_logits(model, rows.features[batch], seed=spec.seed, step=step)
        optimizer.zero_grad()
        functional.cross_entropy(logits, rows.labels[batch]).backward()
        optimizer.step()
        for name, value in model.state_dict().items():
            previous = average.get(name, value)
            average[name] = (0.75 * previous + 0.25 * value).detach().clone() if value.is_floating_point() else value
    fitted = fit_head(SMALL, spec, rows, drawn_rows(20), classes=2)
    for name, value in fitted.model.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, average[name], rtol=1e-5, atol=1e-6)


def test_views_are_drawn_at_random_and_the_clean_one_validates() -> None:
    """A row whose views are all alike trains as if it had one; other views change the result."""
    rows, valid = drawn_rows(64), drawn_rows(20, seed=1)
    alike = Rows(rows.features[:, None].expand(-1, 3, -1).contiguous(), rows.labels)
    views = Rows(alike.features + torch.tensor([0.0, 5.0, -5.0])[None, :, None], rows.labels)
    shifted_valid = Rows(torch.stack([valid.features, valid.features + 100], 1), valid.labels)
    spec = TrainSpec(epochs=2)
    one, other = (fit_head(SMALL, spec, part, valid, classes=2) for part in (alike, views))
    assert not same(one.model, other.model)
    assert fit_head(SMALL, spec, alike, shifted_valid, classes=2).history == one.history


def test_threads_that_train_side_by_side_get_the_bits_of_each_alone() -> None:
    rows, valid, specs = drawn_rows(64), drawn_rows(20, seed=1), [TrainSpec(epochs=3, seed=seed) for seed in range(6)]
    alone = [fit_head(SMALL, spec, rows, valid, classes=2) for spec in specs]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda spec: fit_head(SMALL, spec, rows, valid, classes=2), specs))
    assert all(same(one.model, other.model) for one, other in zip(alone, together, strict=True))


def test_initial_weights_are_torchs_own() -> None:
    """Reference: ``nn.Linear`` made after ``torch.manual_seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = [nn.Linear(DIM, 16), nn.Linear(16, 8), nn.Linear(8, 2)]
    built = [layer for layer in build_head(SMALL, dim=DIM, classes=2, seed=3) if isinstance(layer, nn.Linear)]
    for layer, wanted in zip(built, expected, strict=True):
        torch.testing.assert_close(layer.weight, wanted.weight)
        torch.testing.assert_close(layer.bias, wanted.bias)


def test_without_validation_rows_the_last_epoch_is_kept() -> None:
    fitted = fit_head(SMALL, TrainSpec(epochs=4), drawn_rows(40), None, classes=2)
    assert fitted.best_epoch == 4
    assert math.isnan(fitted.history[-1].valid_loss)


def test_the_callers_floating_point_mode_is_left_alone() -> None:
    """Flushing denormals is a state of the processor; left on, it would change the caller's own arithmetic."""
    import sys

    generator = torch.Generator().manual_seed(0)
    rows = Rows(torch.randn(8, 4, generator=generator), torch.tensor([0, 1] * 4))
    fit_head(HeadSpec(hidden=()), TrainSpec(epochs=1), rows, rows, classes=2)
    assert sys.float_info.min / 2 > 0
