"""Benchmarks: their rows, warnings for what cannot run, and that no row is lost."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

import xfeat.export.bench
from xfeat.export.bench import bench_models
from xfeat.export.build.fused_model import ReferenceModel
from xfeat.export.model.file import ModelFile, open_model
from xfeat.export.specs import BenchSpec
from xfeat.featurize.errors import DeviceError, SpecError
from xfeat.featurize.system.cuda import cuda_driver_present

Xexport = Callable[..., Result]


def test_bench_measures_every_batch_and_thread_against_torch(xexport: Xexport, exported: Any) -> None:
    done = xexport(
        *("bench", exported.model, exported.core, "--run", exported.run.folder),
        *("--batch", "1,3", "--threads", "1", "--seconds", "0", "--provider", "cpu", "--json"),
    )
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["rows"]
    assert [(row["what"], row["batch"], row["provider"]) for row in rows] == [
        (what, batch, "cpu") for batch in (1, 3) for what in ("torch", "model.onnx", "model.core.onnx")
    ]
    for row in rows:
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["calls"] >= 5
        torch_rate = next(r for r in rows if r["what"] == "torch" and r["batch"] == row["batch"])["images_per_second"]
        expected = None if row["what"] == "torch" else pytest.approx(row["images_per_second"] / torch_rate)
        assert row["against_torch"] == expected
        first = next(r for r in rows if r["what"] == "model.onnx" and r["batch"] == row["batch"])["images_per_second"]
        own = row["what"] == "model.core.onnx"
        assert row["against_first"] == (pytest.approx(row["images_per_second"] / first) if own else None)


def test_models_take_turns(exported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def logged(model: ModelFile, pixels: Any) -> Callable[[], None]:
        return lambda: order.append(model.path.name)

    monkeypatch.setattr(xfeat.export.bench, "_onnx_call", logged)
    bench_models([exported.model, exported.core], BenchSpec(batches=(1,), threads=(1,), seconds=0, providers=("cpu",)))
    turns = [name for name, before in zip(order, [None, *order], strict=False) if name != before]
    assert turns == ["model.onnx", "model.core.onnx"] * 5


def test_bench_includes_the_gpu_if_it_can_run_the_model(
    exported: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A CPU session replaces the GPU session: the rows and the calls are tested."""
    asked = []

    def open_on_cpu(path: Path, threads: int | None = None, *, device: str = "cpu", **_: Any) -> ModelFile:
        asked.append((device, threads))
        return open_model(path, threads)

    monkeypatch.setattr(xfeat.export.bench, "cuda_possible", lambda: True)
    monkeypatch.setattr(xfeat.export.bench, "open_model", open_on_cpu)
    rows = bench_models([exported.core], BenchSpec(batches=(1,), threads=(2, 1), seconds=0))
    assert [(row.provider, row.threads) for row in rows] == [("cpu", 2), ("cpu", 1), ("cuda", 2)]
    assert asked == [("cuda", None), ("cpu", 2), ("cpu", 1), ("cuda", 2)]

    def refuse(path: Path, threads: int | None = None, *, device: str = "cpu", **_: Any) -> ModelFile:
        if device == "cuda":
            raise DeviceError("onnxruntime cannot use cuda:0", found="no driver")
        return open_model(path, threads)

    monkeypatch.setattr(xfeat.export.bench, "open_model", refuse)
    rows = bench_models([exported.core], BenchSpec(batches=(1,), seconds=0))
    assert [row.provider for row in rows] == ["cpu"]
    assert "the GPU is not benchmarked: onnxruntime cannot use cuda:0\n  found:    no driver" in caplog.text


def test_threads_spin_by_default_and_sleep_with_no_spin(
    xexport: Xexport, exported: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def opened(path: Path, threads: int | None = None, *, spin: bool = False) -> ModelFile:
        asked.append(spin)
        return open_model(path, threads, spin=spin)

    monkeypatch.setattr(xfeat.export.bench, "open_model", opened)
    for option in ([], ["--no-spin"]):
        done = xexport("bench", exported.core, "--batch", "1", "--threads", "2", "--seconds", "0", *option)
        assert done.exit_code == 0, done.output
    assert asked == [True, False]


def test_bench_refuses_batches_that_are_not_numbers(xexport: Xexport, exported: Any) -> None:
    for numbers in (["--batch", "1,many"], ["--batch", "²"], ["--threads", "0"], ["--seconds", "inf"]):
        assert xexport("bench", exported.model, *numbers).exit_code == 2, numbers


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a GPU for onnxruntime with the CPU."""
    monkeypatch.setattr(xfeat.export.bench, "cuda_possible", lambda: True)
    monkeypatch.setattr(xfeat.export.bench, "open_model", lambda path, threads=None, **_: open_model(path))


@pytest.mark.usefixtures("gpu")
@pytest.mark.skipif(torch.cuda.is_available(), reason="torch has a GPU here")
def test_a_gpu_that_torch_cannot_use_is_left_out_with_a_warning(
    exported: Any, xexport: Xexport, caplog: pytest.LogCaptureFixture
) -> None:
    rows = bench_models([exported.core], BenchSpec(batches=(1,), seconds=0), exported.run)
    assert [(row.what, row.provider) for row in rows] == [("torch", "cpu"), ("model.core.onnx", "cpu")]
    assert "the GPU is not benchmarked: torch does not run on cuda" in caplog.text
    done = xexport("bench", exported.core, "--run", exported.run.folder, "--provider", "cuda", "--seconds", "0")
    assert done.exit_code == 1
    assert done.stderr.startswith("error: torch does not run on cuda in batches of 1")


@pytest.fixture
def small_gpu(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a GPU for torch too, whose memory is full with two images."""

    def full(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

    honest = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, device=None, **more: honest(*size, **more))
    monkeypatch.setattr(ReferenceModel, "to", lambda self, device: self)
    measure = xfeat.export.bench._torch_call
    monkeypatch.setattr(
        xfeat.export.bench,
        "_torch_call",
        lambda plain, pixels, n: full if len(pixels) > 1 else measure(plain, pixels, n),
    )


@pytest.mark.usefixtures("small_gpu")
def test_out_of_memory_loses_only_the_rows_concerned(exported: Any, caplog: pytest.LogCaptureFixture) -> None:
    rows = bench_models([exported.core], BenchSpec(batches=(2, 1), seconds=0), exported.run)
    assert [(row.provider, row.batch) for row in rows] == [("cpu", 1), ("cpu", 1), ("cuda", 1), ("cuda", 1)]
    assert "torch does not run on cuda in batches of 2\n  found:    CUDA out of memory." in caplog.text
    with pytest.raises(DeviceError, match="in batches of 2"):
        bench_models([exported.core], BenchSpec(batches=(1, 2), seconds=0, providers=("cuda",)), exported.run)
    with pytest.raises(DeviceError, match="in batches of 2"):
        bench_models([exported.core], BenchSpec(batches=(2,), seconds=0), exported.run)


@pytest.mark.parametrize(
    "settings",
    [
        {"batches": ()},
        {"batches": (8, 0)},
        {"threads": ()},
        {"threads": (-1,)},
        {"seconds": -1.0},
        {"seconds": math.inf},
        {"seconds": math.nan},
        {"providers": ("tpu",)},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=f"{next(iter(settings)).removesuffix('s')}"):
        BenchSpec(**settings)


def test_a_batch_that_is_too_large_for_memory_is_one_warning(xexport: Xexport, exported: Any) -> None:
    done = xexport("bench", exported.core, "--batch", "1,1000000000000", "--threads", "1", "--seconds", "0", "--json")
    assert done.exit_code == 0
    assert [row["batch"] for row in json.loads(done.stdout)["rows"]] == [1]
    assert "does not run on cpu in batches of 1000000000000" in done.stderr


@pytest.mark.skipif(cuda_driver_present(), reason="this machine has a GPU")
@pytest.mark.parametrize("provider", [[], ["--provider", "cpu"]])
def test_required_graphs_without_a_gpu_are_an_error(xexport: Xexport, exported: Any, provider: list[str]) -> None:
    done = xexport("bench", exported.core, "--cuda-graphs", "on", *provider)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("error: CUDA graphs need a GPU")


def test_too_many_threads_are_refused() -> None:
    with pytest.raises(SpecError, match="threads out of range"):
        BenchSpec(threads=(1, 100_000))


def test_models_of_the_same_name_are_shown_with_their_paths(exported: Any, tmp_path: Path) -> None:
    other = tmp_path / exported.core.name
    other.write_bytes(exported.core.read_bytes())
    rows = bench_models([exported.core, other], BenchSpec(batches=(1,), seconds=0, providers=("cpu",)))
    assert [row.what for row in rows] == [str(exported.core), str(other)]
