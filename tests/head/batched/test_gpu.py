"""Blocks of heads on a GPU: what of it can be tested without one, and the comparison that needs one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.head.batched.fitting import fit_heads
from tests.head.sweep.sweeping import MakeCache
from xfeat.featurize.errors import DeviceError
from xfeat.head.batched.blocks import divide, most_heads
from xfeat.head.batched.scheduler import TORCH, is_gpu, tasks_on
from xfeat.head.batched.torch_engine import TorchEngine
from xfeat.head.batched.training import BlockTraining, Outcome
from xfeat.head.cli import main as xhead
from xfeat.head.data.rows import EqualBatches, Rows
from xfeat.head.specs import HeadSpec, TrainSpec
from xfeat.head.training.fit import fit_head

GPU = torch.device("cuda:0")
SMALL = HeadSpec(hidden=(10, 6), feature_dropout=0.1)
JOBS = [(SMALL, TrainSpec(epochs=2, batch_size=8, lr=lr, seed=seed)) for seed in (0, 1) for lr in (1e-3, 1e-2, 3e-3)]
Both = tuple[Rows, Rows]


def fake_engine(monkeypatch: pytest.MonkeyPatch) -> TorchEngine:
    """Return heads on a GPU that is not there; to be called within ``FakeTensorMode``.

    Autograd, which makes the gradient of the losses, asks for a real GPU even then: ones stand for it.
    """
    monkeypatch.setattr(torch.autograd, "grad", lambda losses, inputs: [torch.ones_like(each) for each in inputs])
    specs = [TrainSpec(label_smoothing=0.1), TrainSpec(focal_gamma=2.0), TrainSpec(weight_decay=0.1)]
    return TorchEngine([(SMALL, spec) for spec in specs], 7, torch.ones(3, 3), device=GPU)


def some_batches(features: Tensor, streams: int) -> EqualBatches:
    """Return two batches of four rows a stream, where the features are."""
    zeros = torch.zeros((streams, 2, 4), dtype=torch.int64, device=features.device)
    return EqualBatches(features, zeros, zeros)


def test_everything_that_meets_in_a_step_is_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's fake tensors know their device and their shape, and raise where two devices meet."""
    with FakeTensorMode():
        engine = fake_engine(monkeypatch)
        assert engine.device == GPU
        for heads in (3, 2):
            batches = some_batches(torch.zeros(9, 7, device=GPU), heads)
            found = engine.train(batches, range(heads), range(heads), [1e-3, 1e-2, 1e-4][:heads])
            assert [each.device for each in found] == [GPU, GPU]
            engine.keep([0, heads - 1])
            assert all(values.device == GPU for values in engine.state.values())
        assert engine.logits(torch.zeros(5, 7, device=GPU), engine.state).device == GPU
        assert engine._adam._count.device == GPU  # the fake kernel does not look


def test_a_tensor_left_behind_is_noticed_by_these_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeTensorMode():
        engine = fake_engine(monkeypatch)
        engine._loss.weights = engine._loss.weights.cpu()
        with pytest.raises(RuntimeError, match="device"):
            engine.train(some_batches(torch.zeros(9, 7, device=GPU), 3), range(3), range(3), [1e-3] * 3)


def test_a_gpu_takes_as_many_heads_as_it_has_room_for() -> None:
    """The default head on 1280 features: 721,000 weights and 1,923 values per row, 26 MB and 2.5 MB in all."""
    job = (HeadSpec(), TrainSpec())
    assert most_heads(job, 1280, 3, room=1 << 20) == 1
    assert most_heads(job, 1280, 3, room=2 << 30) == 60
    assert most_heads(job, 1280, 3, room=80 << 30) == 256
    averaged = (HeadSpec(), TrainSpec(average=0.9))
    assert most_heads(averaged, 1280, 3, room=2 << 30) < 60
    jobs = [(HeadSpec(), TrainSpec(seed=seed)) for seed in range(100)]
    assert [len(block) for block in divide(dict(enumerate(jobs)), 1280, 3, room=2 << 30)] == [50, 50]


def test_a_block_that_finds_no_memory_is_trained_in_halves_with_the_same_results(
    rows: Both, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Reference: all six together; torch's own error is raised for more than two at a time."""
    together = fit_heads(JOBS, *rows, classes=3, backend=TORCH)
    sizes = []

    def run(self: BlockTraining, stop: object) -> Sequence[Outcome]:
        sizes.append(len(self.heads))
        if len(self.heads) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore.")
        return trained(self, stop)  # type: ignore[arg-type]

    trained = BlockTraining.run
    monkeypatch.setattr(BlockTraining, "run", run)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    with caplog.at_level(logging.WARNING, "xfeat.head.batched.scheduler"):
        found = fit_heads(JOBS, *rows, classes=3, backend=TORCH)
    assert sizes == [6, 3, 2, 1, 3, 2, 1]
    assert "no room for 6 heads at once" in caplog.text
    for one, other in zip(found, together, strict=True):
        for name, values in one.model.state_dict().items():
            torch.testing.assert_close(values, other.model.state_dict()[name], rtol=1e-3, atol=1e-4)


def test_a_head_too_large_for_the_gpu_ends_in_words(rows: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: BlockTraining, stop: object) -> list[Outcome]:
        raise RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)")

    monkeypatch.setattr(BlockTraining, "run", run)
    with pytest.raises(DeviceError, match="does not fit into the memory") as error:
        fit_heads(JOBS[:1], *rows, classes=3, backend=TORCH)
    assert "--device cpu" in str(error.value)


def test_features_too_large_for_the_gpu_end_in_words(rows: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Tensor, device: torch.device) -> Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Tensor, "to", full)
    with pytest.raises(DeviceError, match="cuda:0 cannot hold the features") as error:
        tasks_on(dict(enumerate(JOBS)), *rows, classes=3, threads=1, backend="cuda:0")
    assert "--memory-mb" in str(error.value)


def test_what_is_a_gpu_is_told_from_what_is_not() -> None:
    assert [is_gpu(backend) for backend in ("cuda:1", TORCH, None)] == [True, False, False]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named_before_the_work(make_cache: MakeCache, tmp_path: Path) -> None:
    command = ["sweep", "--features", make_cache().path, "--runs", tmp_path / "runs", "--device", "cuda:3"]
    done = CliRunner().invoke(xhead, [str(word) for word in command])
    assert done.exit_code == 1
    assert "cannot use cuda:3" in done.output
    assert not (tmp_path / "runs").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU that torch can use")
def test_each_head_of_a_block_on_the_gpu_ends_as_it_would_alone_on_the_cpu(rows: Both) -> None:
    """Reference: :func:`xfeat.head.training.fit.fit_head`."""
    for fitted, job in zip(fit_heads(JOBS, *rows, classes=3, backend="cuda:0"), JOBS, strict=True):
        alone = fit_head(*job, *rows, classes=3)
        assert fitted.best_epoch == alone.best_epoch
        for name, values in fitted.model.state_dict().items():
            torch.testing.assert_close(values, alone.model.state_dict()[name], rtol=1e-3, atol=1e-4)
