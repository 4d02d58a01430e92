"""One device or several, and how many images each gets at a time."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from xfeat.featurize.backbones.weights import Weights
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.cli import main
from xfeat.featurize.engines import open_engine
from xfeat.featurize.engines.batch_size import find_batch_size
from xfeat.featurize.engines.device_group import DeviceGroup
from xfeat.featurize.engines.torch_engine import TorchEngine
from xfeat.featurize.errors import DeviceError, SpecError
from xfeat.featurize.specs import FeatureSpec, PreprocessSpec
from xfeat.featurize.system.devices import resolve_devices

if TYPE_CHECKING:
    from conftest import Bench

Some = Callable[[int, int], np.ndarray]


def test_devices_are_named_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    def works(device: str) -> None:
        if device not in ("cuda:0", "cuda:1"):
            raise DeviceError(f"torch cannot use {device}")

    monkeypatch.setattr("xfeat.featurize.system.devices.check_gpu_in_torch", works)
    assert resolve_devices("cpu") == ["cpu"]
    assert resolve_devices("cpu, cpu") == ["cpu", "cpu"]
    assert resolve_devices("cuda") == ["cuda:0"]
    assert resolve_devices("cuda:1,cuda:0") == ["cuda:1", "cuda:0"]
    for wrong, said in {
        "cuda:0,cuda": "named twice",
        "cpu,cuda:0": "cannot mix CPU and GPU",
        "auto,cuda:0": "auto cannot be combined",
        "cuda:0,": "unknown device",
        "cuda:0;cuda:1": "unknown device",
    }.items():
        with pytest.raises(SpecError, match=said):
            resolve_devices(wrong)
    with pytest.raises(DeviceError, match="cannot use cuda:2"):
        resolve_devices("cuda:0,cuda:2")


# Several devices; a CPU twice goes the way of two GPUs


def test_two_devices_give_what_one_gives(lite0_weights: Weights, lite0_spec: FeatureSpec, some_pixels: Some) -> None:
    pixels = some_pixels(5, 64)
    one = open_engine(lite0_spec, lite0_weights, engine="torch", device="cpu", batch_size=3, threads=1)
    two = open_engine(lite0_spec, lite0_weights, engine="torch", device="cpu,cpu", batch_size=3, threads=2)
    assert isinstance(two, DeviceGroup)
    assert (two.name, two.batch_size) == ("torch on cpu, torch on cpu", 3)
    assert np.array_equal(two.features(pixels), one.features(pixels))


def test_devices_compute_at_the_same_time_and_rows_stay_in_order(bench: Bench) -> None:
    """Each call waits until the other device is called too: devices that take turns would break the barrier."""
    bench.engine.batch_size = 1
    bench.run()
    expected = FeatureCache.open(bench.output)
    meeting = threading.Barrier(2, timeout=30)
    used: list[int] = []

    def member(number: int) -> Any:
        engine = SimpleNamespace(name=f"device {number}", batch_size=1)

        def features(pixels: np.ndarray) -> np.ndarray:
            meeting.wait()
            used.append(number)
            return bench.engine.features(pixels)

        engine.features = features
        return engine

    group = DeviceGroup([member(0), member(1)])
    bench.output = bench.output.with_name("two.h5")
    done = bench.run(open_engine=lambda: group)
    assert (done.computed, done.engine) == (12, "device 0, device 1")
    assert used.count(0) == used.count(1) == 6
    assert FeatureCache.open(bench.output).content_sha256 == expected.content_sha256


@pytest.mark.parametrize("grouped", [False, True])
def test_a_device_with_two_lanes_is_called_twice_at_a_time(bench: Bench, grouped: bool) -> None:
    """As a GPU is: each call waits for another; the rows are those of calls one by one."""
    bench.engine.batch_size = 1
    bench.run()
    expected = FeatureCache.open(bench.output)
    meeting = threading.Barrier(2, timeout=30)

    def features(pixels: np.ndarray) -> np.ndarray:
        meeting.wait()
        return bench.engine.features(pixels)

    engine: Any = SimpleNamespace(name="gpu", batch_size=1, concurrent_calls=2, features=features)
    bench.output = bench.output.with_name("two.h5")
    assert bench.run(open_engine=lambda: DeviceGroup([engine]) if grouped else engine).computed == 12
    assert FeatureCache.open(bench.output).content_sha256 == expected.content_sha256


def test_a_failed_batch_is_freed_before_the_next_is_tried(
    lite0_weights: Weights, lite0_spec: FeatureSpec, some_pixels: Some, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While an exception is handled, its traceback keeps the batch alive: emptying the cache would free nothing."""
    engine = TorchEngine(lite0_spec, lite0_weights, device="cpu", threads=1, batch_size=4)
    network, handled = engine._network, []

    def refusing(batch: torch.Tensor) -> torch.Tensor:
        if len(batch) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        found: torch.Tensor = network(batch)
        return found

    monkeypatch.setattr(engine, "_network", refusing)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: handled.append(sys.exc_info()[0]))
    pixels = some_pixels(3, 64)
    expected = TorchEngine(lite0_spec, lite0_weights, device="cpu", threads=1, batch_size=2).features(pixels)
    assert np.array_equal(engine.features(pixels), expected)
    assert handled == [None]


def test_a_filled_card_is_one_message(
    lite0_weights: Weights, lite0_spec: FeatureSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = torch.nn.Module.to

    def full(self: torch.nn.Module, *where: Any, **more: Any) -> torch.nn.Module:
        if where and isinstance(where[0], torch.device):
            raise torch.AcceleratorError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'")
        return move(self, *where, **more)

    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(DeviceError, match="no room for the network"):
        TorchEngine(lite0_spec, lite0_weights, device="cpu", threads=1)


def test_a_device_that_fails_loses_only_what_was_on_its_way(bench: Bench) -> None:
    calls = iter(range(100))

    def features(pixels: np.ndarray) -> np.ndarray:
        if next(calls) >= 6:
            raise RuntimeError("fell off the bus")
        return bench.engine.features(pixels)

    members: Any = [SimpleNamespace(name="x", batch_size=1, features=features) for _ in range(2)]
    with pytest.raises(RuntimeError, match="fell off the bus"):
        bench.run(open_engine=lambda: DeviceGroup(members))
    done = bench.run()
    assert done.reused >= 3, "of six, three may have been on their way when one before them failed"
    assert done.computed == 12 - done.reused
    FeatureCache.open(bench.output).verify()


def test_a_device_out_of_memory_sets_the_batch_size_of_all() -> None:
    sizes: list[int] = []

    def features(pixels: np.ndarray) -> np.ndarray:
        return np.zeros((len(pixels), 2), np.float32)

    small = SimpleNamespace(name="small", batch_size=4, features=features)
    large = SimpleNamespace(name="large", batch_size=16)
    large.features = lambda pixels: (sizes.append(large.batch_size), features(pixels))[1]
    group = DeviceGroup([large, small])
    assert group.batch_size == 4
    group.features(np.zeros((4, 1, 1, 3), np.uint8))
    assert sizes == [4]


def test_tf32_stays_off_while_other_threads_compute(lite0_weights: Weights, lite0_spec: FeatureSpec) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    TorchEngine(lite0_spec, lite0_weights, device="cpu", threads=1)
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.slow
@pytest.mark.usefixtures("lite0_at_32")
def test_the_command_takes_several_devices_and_a_batch_size_that_it_finds(
    tmp_path: Path, art: SimpleNamespace, lite0_weights: Weights
) -> None:
    data = art.draw_folder(tmp_path / "data", count=5)
    settings = ["--backbone", "efficientnet-lite0", "--size", "32", "--engine", "onnxruntime"]
    for name, more in {
        "one.h5": ["--device", "cpu"],
        "two.h5": ["--device", "cpu,cpu"],
        "auto.h5": ["--device", "cpu", "--batch-size", "auto"],
    }.items():
        done = CliRunner().invoke(main, ["featurize", str(data), "-o", str(tmp_path / name), *settings, *more])
        assert done.exit_code == 0, done.output
    expected = FeatureCache.open(tmp_path / "one.h5").content_sha256
    assert FeatureCache.open(tmp_path / "two.h5").content_sha256 == expected
    assert FeatureCache.open(tmp_path / "auto.h5").content_sha256 == expected


# The batch size


class Timed:
    """A device whose calls take a known time, on a clock of its own, and whose memory holds so many images."""

    name = "timed"

    def __init__(self, seconds: Callable[[int], float], holds: int = 10_000) -> None:
        self.batch_size = 1
        self.now = 0.0
        self._seconds = seconds
        self._holds = holds

    def features(self, pixels: np.ndarray) -> np.ndarray:
        while self.batch_size > self._holds:
            self.batch_size //= 2
        self.now += self._seconds(self.batch_size)
        return np.zeros((len(pixels), 1), np.float32)


@pytest.mark.parametrize(
    ("seconds", "holds", "expected"),
    [
        (lambda size: 1.0 + size / 100, 10_000, 1024),  # a start-up cost that large batches share
        (lambda size: max(1.0, size / 64), 10_000, 64),  # nothing gained beyond 64
        (lambda size: size * (1 + size / 100), 10_000, 8),  # small batches are the fastest
        (lambda size: 1.0, 50, 32),  # memory for 50: 64 is refused, and halved
        (lambda size: 1.0, 3, 2),
    ],
    ids=["up to the limit", "up to 64", "the smallest tried", "memory", "little memory"],
)
def test_the_batch_grows_as_long_as_it_pays(seconds: Callable[[int], float], holds: int, expected: int) -> None:
    engine = Timed(seconds, holds)
    find_batch_size(engine, 1, clock=lambda: engine.now)
    assert engine.batch_size == expected


def test_openvino_cannot_look_for_a_batch_size(lite0_weights: Weights, lite0_spec: FeatureSpec) -> None:
    with pytest.raises(SpecError, match="needs a fixed batch size"):
        open_engine(lite0_spec, lite0_weights, engine="openvino", batch_size="auto")


@pytest.mark.parametrize("wrong", ["0", "-1", "many", "1.5", ""])
def test_a_batch_size_that_is_none_is_wrong_usage(wrong: str) -> None:
    done = CliRunner().invoke(main, ["featurize", ".", "--batch-size", wrong])
    assert done.exit_code == 2
    assert "neither a positive integer nor auto" in done.output


# Images that are the same


def test_twins_of_an_image_that_is_refused_are_refused_too(bench: Bench) -> None:
    """Both are on their way at once: the second waits for features that never come."""
    spec = FeatureSpec(
        backbone=bench.spec.backbone,
        weights_sha256=bench.spec.weights_sha256,
        preprocess=PreprocessSpec(size=32),
        dtype="float16",
    )
    (bench.data / "covid/000a.png").write_bytes((bench.data / "covid/000.png").read_bytes())
    features, first = bench.engine.features, []

    def overflowing(pixels: np.ndarray) -> np.ndarray:
        rows = features(pixels)
        if not first:
            first.append(rows[0, 0])
        rows[rows[:, 0] == first[0]] = 1e6
        return rows

    bench.engine.features = overflowing  # type: ignore[method-assign]
    done = bench.run(spec=spec)
    reason = "its features are beyond the range of float16"
    assert done.skipped == [("covid/000.png", reason), ("covid/000a.png", reason)]
    assert (done.images, done.computed) == (11, 11)


# With GPUs

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_gives_the_features_of_the_cpu(
    lite0_weights: Weights, lite0_spec: FeatureSpec, some_pixels: Some
) -> None:
    pixels = some_pixels(9, 64)
    cpu = open_engine(lite0_spec, lite0_weights, engine="torch", device="cpu").features(pixels)
    for batch_size in (4, "auto"):
        engine = open_engine(lite0_spec, lite0_weights, device="cuda", batch_size=batch_size)  # type: ignore[arg-type]
        assert np.linalg.norm(engine.features(pixels) - cpu) < 1e-4 * np.linalg.norm(cpu)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two CUDA devices")
def test_two_gpus_give_the_features_of_one(lite0_weights: Weights, lite0_spec: FeatureSpec, some_pixels: Some) -> None:
    pixels = some_pixels(9, 64)
    one = open_engine(lite0_spec, lite0_weights, device="cuda:0", batch_size=4)
    two = open_engine(lite0_spec, lite0_weights, device="cuda:0,cuda:1", batch_size=4)
    assert isinstance(two, DeviceGroup)
    for _ in range(2):  # calls take turns
        assert np.allclose(two.features(pixels), one.features(pixels), atol=1e-4)
