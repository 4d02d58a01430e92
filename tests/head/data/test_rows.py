"""Rows in memory and rows on the disk: every row once an epoch, in an order that the seed decides."""

from __future__ import annotations

import json
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from tests.head.batched.fitting import fit_heads
from tests.head.conftest import DIM, MakeCache, cloud
from tests.head.training.reference import reference_logits, reference_loss
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.cache.rows import read_rows
from xfeat.featurize.errors import SpecError
from xfeat.head.batched.blocks import divide
from xfeat.head.batched.scheduler import NUMBA, TORCH
from xfeat.head.cli import main
from xfeat.head.data import rows as rows_module
from xfeat.head.data.rows import (
    DiskRows,
    Reading,
    Rows,
    as_rows,
    batches,
    blockwise_order,
    collected,
    labelled_rows,
    plan_reading,
    single_batches,
)
from xfeat.head.runs.reader import open_run
from xfeat.head.specs import HeadSpec, MemorySpec, TrainSpec
from xfeat.head.train import TrainOptions, train_run
from xfeat.head.training.fit import fit_head
from xfeat.head.training.loss import validation_figures
from xfeat.head.training.network import build_head

SMALL = HeadSpec(hidden=(16, 8))
BLOCKS = Reading(1.0, block_rows=5, buffer_rows=24)


def stored(cache: FeatureCache, rows: np.ndarray) -> DiskRows:
    found = BLOCKS.load(cache, rows)
    assert isinstance(found, DiskRows)
    return found


def half(count: int, views: int | None = None) -> np.ndarray:
    """Features float16 that tell their row by the first number."""
    features = np.random.default_rng(0).normal(size=(count, *(() if views is None else (views,)), DIM))
    features[..., 0] = np.arange(count).reshape(-1, *([] if views is None else [1]))
    return features.astype(np.float16)


@pytest.mark.parametrize(
    ("count", "block", "buffer"), [(100, 7, 30), (61, 5, 20), (41, 8, 20), (3, 10, 10), (50, 1, 2)]
)
def test_a_blockwise_order_holds_every_row_once(count: int, block: int, buffer: int) -> None:
    parts = blockwise_order(count, block, buffer, seed=0, epoch=1)
    assert sorted(torch.cat(parts).tolist()) == list(range(count))
    assert all(len(part) == buffer for part in parts[:-1])
    assert 1 < len(parts[-1]) <= buffer + 1


def test_a_part_of_the_order_comes_from_as_few_blocks_as_fill_it_and_mixes_their_rows() -> None:
    parts = blockwise_order(1000, 10, 100, seed=0, epoch=1)
    for part in parts:
        assert len({row // 10 for row in part.tolist()}) == 10
        assert part.tolist() != sorted(part.tolist())
    assert len({row // 100 for row in parts[0].tolist()}) > 3  # the blocks lie all over the cache


@pytest.mark.parametrize("batch_size", [8, 24, 50])
def test_an_epoch_from_the_disk_gives_every_row_once_with_its_own_label(make_cache: MakeCache, batch_size: int) -> None:
    labels = np.random.default_rng(1).integers(2, size=101)
    cache = make_cache(sizes=(101,), features=half(101), labels=labels.tolist())
    chosen = np.flatnonzero(np.arange(101) % 4 != 1)
    seen: list[int] = []
    for features, own in single_batches(stored(cache, chosen), batch_size, seed=3, epoch=1):
        assert features.dtype == torch.float32
        numbers = features[:, 0].int().tolist()
        assert own.tolist() == labels[numbers].tolist()
        np.testing.assert_array_equal(features.numpy(), cache.features[numbers])
        assert len(own) in (batch_size, batch_size + 1) or len(seen) + len(own) == len(chosen)
        seen += numbers
    assert sorted(seen) == chosen.tolist()


def test_the_seed_decides_the_order_and_each_epoch_has_another(make_cache: MakeCache) -> None:
    cache = make_cache(sizes=(60,), features=half(60))

    def epochs(seed: int) -> list[list[float]]:
        rows = stored(cache, np.arange(60))
        return [torch.cat([x[:, 0] for x, _ in single_batches(rows, 8, seed, epoch)]).tolist() for epoch in (1, 2)]

    assert epochs(0) == epochs(0)
    assert epochs(0) != epochs(1)
    assert epochs(0)[0] != epochs(0)[1]


def test_of_several_views_one_of_each_row_is_drawn_and_the_first_is_clean(make_cache: MakeCache) -> None:
    features = half(40, views=3)
    features[..., 1] = np.arange(3)
    rows = stored(make_cache(sizes=(40,), features=features), np.arange(40))
    batch = torch.cat([x for x, _ in single_batches(rows, 8, seed=0, epoch=1)])
    assert sorted(batch[:, 0].tolist()) == list(range(40))
    assert set(batch[:, 1].tolist()) == {0.0, 1.0, 2.0}
    for number, view, *rest in batch.tolist():
        assert rest == features[int(number), int(view), 2:].astype(float).tolist()
    np.testing.assert_array_equal(torch.cat(list(rows.clean_blocks())).numpy(), features[:, 0])


@pytest.mark.parametrize("views", [None, 3])
def test_some_rows_in_memory_are_what_a_copy_of_them_is(views: int | None) -> None:
    """Reference: :class:`xfeat.head.data.rows.Rows` of the copied features, and of a copy of a part of it."""
    features, labels = half(50, views).astype(np.float32), np.arange(50) % 3
    first, second = np.random.default_rng(0).permutation(50)[:41], np.arange(40)[::-2].copy()
    some = as_rows(features, labels).take(first).take(second)
    copied = as_rows(features[first][second], labels[first][second])
    assert some.dim == copied.dim
    assert torch.equal(some.labels, copied.labels)
    assert torch.equal(torch.cat(list(some.clean_blocks())), torch.cat(list(copied.clean_blocks())))
    epochs = [list(single_batches(rows, 8, seed=1, epoch=1)) for rows in (some, copied)]
    for (x, y), (other_x, other_y) in zip(*epochs, strict=True):
        assert torch.equal(x, other_x)
        assert torch.equal(y, other_y)


def test_some_rows_in_memory_are_no_copy() -> None:
    """What is changed in all rows is seen in some of them, batch by batch."""
    rows = as_rows(half(50).astype(np.float32), np.arange(50) % 3)
    some = rows.take(np.arange(5, 45)).take(np.arange(0, 40, 2))
    rows.features[:, 1] = 7
    assert all((x[:, 1] == 7).all() for x, _ in single_batches(some, 8, seed=0, epoch=1))
    assert all((x[:, 1] == 7).all() for x in some.clean_blocks())


def plain_loop(spec: TrainSpec, features: Tensor, labels: Tensor, valid: Rows) -> tuple[dict[str, Tensor], list[float]]:
    """Torch's own Adam over rows in memory, in the order that blocks of 5 and buffers of 24 lead to."""
    model = build_head(SMALL, dim=DIM, classes=2, seed=spec.seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=spec.lr, fused=True)
    losses, step = [], 0
    for epoch in range(1, spec.epochs + 1):
        for part in blockwise_order(len(labels), 5, 24, spec.seed, epoch):
            for batch in batches(part, spec.batch_size):
                optimizer.zero_grad()
                logits = reference_logits(model, features[batch], seed=spec.seed, step=step)
                reference_loss(logits, labels[batch], spec, None).backward()
                optimizer.step()
                step += 1
        model.eval()
        with torch.no_grad():
            losses.append(validation_figures(model(valid.features), valid.labels, None)[0])
    return model.state_dict(), losses


def test_training_from_the_disk_is_a_plain_loop_over_the_same_order(make_cache: MakeCache) -> None:
    """Reference: :func:`plain_loop`."""
    cache = make_cache(sizes=(97, 40))
    spec = TrainSpec(epochs=3, lr=1e-3, batch_size=8, seed=4)
    train, valid = stored(cache, np.arange(97)), stored(cache, np.arange(97, 137))
    expected, losses = plain_loop(
        spec, *labelled_rows(cache, np.arange(97))[:2], valid=labelled_rows(cache, np.arange(97, 137))
    )
    fitted = fit_head(SMALL, spec, train, valid, classes=2)
    assert [record.valid_loss for record in fitted.history] == pytest.approx(losses, abs=1e-6)
    assert fitted.best_epoch == 3
    for name, value in fitted.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", [TORCH, NUMBA])
def test_heads_in_blocks_read_the_disk_as_each_alone_does(make_cache: MakeCache, backend: str) -> None:
    """Reference: :func:`xfeat.head.training.fit.fit_head`; heads share a buffer only where they share a seed."""
    cache = make_cache(sizes=(90, 30))
    train, valid = stored(cache, np.arange(90)), stored(cache, np.arange(90, 120))
    jobs = [(SMALL, TrainSpec(epochs=2, batch_size=8, lr=lr, seed=seed)) for lr in (1e-3, 1e-2) for seed in (0, 1)]
    blocks = divide(dict(enumerate(jobs)), DIM, 2, one_seed=True)
    assert [[spec.seed for _, spec in block.values()] for block in blocks] == [[0, 0], [1, 1]]
    for fitted, job in zip(fit_heads(jobs, train, valid, classes=2, backend=backend), jobs, strict=True):
        alone = fit_head(*job, train, valid, classes=2)
        assert fitted.best_epoch == alone.best_epoch
        for name, value in fitted.model.state_dict().items():
            torch.testing.assert_close(value, alone.model.state_dict()[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("together", [False, True])
def test_a_buffer_is_gone_before_the_next_is_read(
    make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    buffers: list[weakref.ref[np.ndarray]] = []

    def noting(cache: FeatureCache, rows: np.ndarray, **options: object) -> np.ndarray:
        assert not any(buffer() is not None for buffer in buffers)
        buffer = read_rows(cache, rows, **options)  # type: ignore[arg-type]
        buffers.append(weakref.ref(buffer))
        return buffer

    train, job = stored(make_cache(sizes=(90,)), np.arange(90)), (SMALL, TrainSpec(epochs=2, batch_size=8))
    monkeypatch.setattr(rows_module, "read_rows", noting)
    if together:
        fit_heads([job], train, None, classes=2)
    else:
        fit_head(*job, train, None, classes=2)
    assert len(buffers) == 2 * 4


def test_never_more_than_a_buffer_is_read_at_a_time(make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make_cache(sizes=(200, 60, 40), features=cloud(np.arange(300) % 2).astype(np.float16))
    sizes: list[int] = []

    def counting(cache: FeatureCache, rows: np.ndarray, **options: object) -> np.ndarray:
        sizes.append(len(rows))
        return read_rows(cache, rows, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(rows_module, "ROWS_AT_ONCE", 16)
    monkeypatch.setattr(rows_module, "read_rows", counting)
    fit_head(
        SMALL, TrainSpec(epochs=2, batch_size=8), *map(stored, [cache] * 2, np.split(np.arange(260), [200])), classes=2
    )
    assert max(sizes) == 24
    assert sum(sizes) == 2 * (200 + 60)


def test_the_size_of_the_cache_against_the_memory_decides(make_cache: MakeCache) -> None:
    cache = make_cache(sizes=(100, 40, 40), features=half(180))
    bytes_in_memory = 140 * DIM * 4
    fits = plan_reading(cache, 140, MemorySpec(memory_mb=bytes_in_memory / 1e6))
    assert fits.to_dict() == {
        "mode": "memory", "memory_mb": bytes_in_memory / 1e6, "block_rows": None, "buffer_rows": None
    }  # fmt: skip
    assert isinstance(fits.load(cache, np.arange(100)), Rows)
    too_large = plan_reading(cache, 141, MemorySpec(memory_mb=bytes_in_memory / 1e6))
    assert too_large.to_dict()["mode"] == "blocks"
    assert too_large.buffer_rows == bytes_in_memory // 8 // (DIM * 2)
    assert isinstance(too_large.load(cache, np.arange(100)), DiskRows)


def test_a_million_rows_leave_room_in_the_memory_that_is_allowed_by_default(make_cache: MakeCache) -> None:
    """1280 float16 features: buffers of 125 MB, in blocks of a megabyte, which a disk reads like one long piece."""
    reading = plan_reading(make_cache(sizes=(4,), features=np.zeros((4, 1280), np.float16)), 10**6, MemorySpec())
    assert reading.buffer_rows is not None
    assert reading.block_rows is not None
    assert reading.buffer_rows * 1280 * 2 <= 125e6
    assert 0.9 * 2**20 <= reading.block_rows * 1280 * 2 <= 2**20


def test_memory_out_of_range_is_refused() -> None:
    with pytest.raises(SpecError, match="memory"):
        MemorySpec(memory_mb=0)


def test_what_is_collected_is_what_torch_joins() -> None:
    blocks = [torch.randn(2, size, 3) for size in (4, 4, 1)]
    assert torch.equal(collected(iter(blocks), 9, dim=1), torch.cat(blocks, 1))


@pytest.mark.slow
def test_the_command_records_where_it_read_from_and_what_it_writes_is_whole(
    make_cache: MakeCache, tmp_path: Path
) -> None:
    make_cache(sizes=(100, 40, 40))
    common = ["train", "--features", str(tmp_path / "features.h5"), "--runs", str(tmp_path / "runs"), "--epochs", "2"]
    for name, options in (("memory", []), ("blocks", ["--memory-mb", "0.005"])):
        outcome = CliRunner().invoke(main, [*common, "--name", name, *options, "--json"])
        assert outcome.exit_code == 0, outcome.output
        assert set(json.loads(outcome.stdout)["metrics"]) == {"train", "valid", "test"}
    memory, blocks = (open_run(tmp_path / "runs" / name) for name in ("memory", "blocks"))
    assert memory.reading["mode"] == "memory"
    assert blocks.reading == {"mode": "blocks", "memory_mb": 0.005, "block_rows": 1, "buffer_rows": 13}
    assert memory.head_sha256 != blocks.head_sha256
    assert [row["path"] for row in memory.predictions()] == [row["path"] for row in blocks.predictions()]


def test_a_run_from_the_disk_is_the_same_bits_again(make_cache: MakeCache, tmp_path: Path) -> None:
    cache, memory = make_cache(), MemorySpec(memory_mb=0.005)
    first, second = (
        train_run(
            cache, SMALL, TrainSpec(epochs=2), runs=tmp_path / "runs", name=name, options=TrainOptions(memory=memory)
        )
        for name in ("a", "b")
    )
    assert first.head_sha256 == second.head_sha256
    assert first.metrics == second.metrics
