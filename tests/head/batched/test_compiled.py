"""The compiled step against torch: modules, autograd and ``torch.optim.Adam``, on sizes that fill no register."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.head.batched.fitting import fit_heads
from tests.head.training.reference import reference_logits, reference_loss
from xfeat.head.batched import scheduler
from xfeat.head.batched.scheduler import NUMBA, TORCH, tasks_on
from xfeat.head.batched.torch_engine import TorchEngine
from xfeat.head.data.rows import EqualBatches, Rows
from xfeat.head.specs import HeadSpec, TrainSpec
from xfeat.head.training.network import build_head

pytest.importorskip("numba", reason="numba is not installed: pip install 'xfeat-onnx[fast]'")
if not scheduler.can_compile():
    pytest.skip("this processor has no FMA instructions", allow_module_level=True)

from xfeat.head.batched.compiled.engine import CompiledEngine


def assert_steps_as_torch(spec: HeadSpec, train: TrainSpec, *, dim: int, classes: int, counts: tuple[int, ...]) -> None:
    """Take one step a batch with two heads, on rows of their own, and hold each against torch's own training."""
    torch.manual_seed(0)
    models = [build_head(spec, dim=dim, classes=classes) for _ in range(2)]
    rates, class_weights = [1e-2, 1e-3], torch.rand(2, classes) + 0.5
    program = CompiledEngine([(spec, train)] * 2, dim, class_weights)
    optimizers = [
        torch.optim.Adam(model.parameters(), lr=rate, weight_decay=train.weight_decay)
        for model, rate in zip(models, rates, strict=True)
    ]
    for step, count in enumerate(counts):
        features = torch.randn(2, count, dim) * 2 + 1
        labels = torch.randint(classes, (2, count))
        rows = torch.arange(2 * count).view(2, 1, count)
        batches = EqualBatches(features.flatten(0, 1), rows, labels.unsqueeze(1))
        losses, hits = program.train(batches, [5, 6], [0, 1], rates)
        for head, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
            logits = reference_logits(model, features[head], seed=5 + head, step=step)
            loss = reference_loss(logits, labels[head], train, class_weights[head])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            torch.testing.assert_close(losses[head] / count, loss.detach(), rtol=1e-3, atol=1e-4)
            assert int(hits[head]) == int((logits.argmax(1) == labels[head]).sum())
    for head, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
        parameters = dict(model.named_parameters())
        for name, wanted in model.state_dict().items():
            found: Tensor = program.state[name][head]
            if name in parameters:  # Adam takes whole steps in the direction of what may be nothing but rounding
                sure = optimizer.state[parameters[name]]["exp_avg_sq"].sqrt() > 3e-6
                found, wanted = found[sure], wanted[sure]
            torch.testing.assert_close(
                found, wanted, rtol=2e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("count", [2, 3, 7, 31, 32, 33, 65])
@pytest.mark.parametrize("hidden", [(), (9,), (40, 5)])
def test_a_step_is_torchs_whatever_the_number_of_rows(count: int, hidden: tuple[int, ...]) -> None:
    spec = HeadSpec(hidden=hidden, dropout=0.0)
    # Of few rows, some hidden unit is nearly the same for all, and dividing by that makes rounding grow with each step.
    assert_steps_as_torch(spec, TrainSpec(), dim=37, classes=3, counts=(count,) * (3 if count > 3 else 1))


@pytest.mark.parametrize(("dim", "classes"), [(5, 2), (15, 9), (32, 8), (70, 33)])
def test_a_step_is_torchs_whatever_the_number_of_features_and_classes(dim: int, classes: int) -> None:
    spec = HeadSpec(hidden=(33, 17), dropout=0.0)
    assert_steps_as_torch(spec, TrainSpec(), dim=dim, classes=classes, counts=(16, 16))


@pytest.mark.parametrize("count", [5, 32, 70])
@pytest.mark.parametrize(("dropout", "feature_dropout"), [(0.4, 0.0), (0.0, 0.3), (0.7, 0.2)])
def test_dropout_is_that_of_the_counter_based_numbers(count: int, dropout: float, feature_dropout: float) -> None:
    spec = HeadSpec(hidden=(33,), dropout=dropout, feature_dropout=feature_dropout)
    assert_steps_as_torch(spec, TrainSpec(), dim=37, classes=3, counts=(count,))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_losses_and_weight_decay_are_torchs(gamma: float, smoothing: float) -> None:
    train = TrainSpec(label_smoothing=smoothing, focal_gamma=gamma, weight_decay=0.1)
    assert_steps_as_torch(HeadSpec(hidden=(12,), dropout=0.0), train, dim=20, classes=4, counts=(24, 24, 9))


@pytest.mark.parametrize("kind", ["float16", "part of the columns", "float32"])
def test_several_steps_in_one_call_are_those_steps_one_by_one(kind: str) -> None:
    """Reference: the program in torch, a call a batch; rows are picked from what lies in memory as a cache's may."""
    torch.manual_seed(0)
    features, labels = torch.randn(50, 45), torch.randint(3, (50,))
    features = {"float16": features[:, :20].half(), "float32": features[:, :20].contiguous()}.get(
        kind, features[:, 5:25]
    )
    given = [(HeadSpec(hidden=(9,)), TrainSpec())] * 2, 20, torch.ones(2, 3)
    compiled, plain = CompiledEngine(*given), TorchEngine(*given)
    order = torch.stack([torch.randperm(50)[:48].view(4, 12) for _ in range(2)])
    sums, hits = compiled.train(EqualBatches(features, order, labels[order]), [3, 4], [0, 1], [1e-3, 1e-2])
    one_by_one = []
    for step in range(4):
        part = slice(step, step + 1)
        batches = EqualBatches(features, order[:, part], labels[order[:, part]])
        one_by_one.append(plain.train(batches, [3, 4], [0, 1], [1e-3, 1e-2]))
    torch.testing.assert_close(sums, sum(each for each, _ in one_by_one), rtol=1e-3, atol=1e-3)
    assert torch.equal(hits, sum(each for _, each in one_by_one))
    for name, values in plain.state.items():
        torch.testing.assert_close(compiled.state[name], values, rtol=2e-3, atol=2e-4)


def test_the_same_seed_is_the_same_bits_alone_and_beside_others(rows: tuple[Rows, Rows]) -> None:
    jobs = [(HeadSpec(hidden=(10,)), TrainSpec(epochs=2, batch_size=8, seed=seed)) for seed in (0, 1, 2)]
    once, again = (fit_heads(chosen, *rows, classes=3, backend=NUMBA) for chosen in (jobs, jobs[1:]))
    for one, other in zip(once[1:], again, strict=True):
        for name, values in one.model.state_dict().items():
            assert torch.equal(values, other.model.state_dict()[name])


def test_what_a_head_alone_costs_says_whether_it_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Rows(torch.zeros(2000, 40), torch.zeros(2000, dtype=torch.int64))
    job = (HeadSpec(hidden=(1000,)), TrainSpec(epochs=30))
    [task] = tasks_on({0: job}, rows, None, classes=3, threads=1)
    assert task.backend == NUMBA
    [task] = tasks_on({0: (job[0], TrainSpec(epochs=2))}, rows, None, classes=3, threads=1)
    assert task.backend == TORCH
    monkeypatch.setattr(scheduler, "can_compile", lambda: False)
    [task] = tasks_on({0: job}, rows, None, classes=3, threads=1)
    assert task.backend == TORCH


def test_without_numba_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "find_spec", lambda name: None)
    scheduler.can_compile.cache_clear()
    try:
        assert not scheduler.can_compile()
    finally:
        monkeypatch.undo()
        scheduler.can_compile.cache_clear()


def test_a_folder_that_nothing_can_be_kept_in_does_no_harm(tmp_path: Path) -> None:
    """The folder for what was compiled cannot be made, since a file is in its place."""
    (tmp_path / "taken").write_text("")
    script = "from xfeat.head.batched.compiled.simd import compiled\nprint(compiled(lambda: 3)())"
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "taken")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "3\n", done.stderr
