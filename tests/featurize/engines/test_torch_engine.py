"""The network of the torch engine against the plain one, and its CUDA graph with a recorder that runs on a CPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from xfeat.featurize.backbones.inference_network import InferenceNetwork
from xfeat.featurize.backbones.network import FeatureNetwork, load_backbone
from xfeat.featurize.backbones.weights import Weights
from xfeat.featurize.engines import replayed_network
from xfeat.featurize.engines.engine import halving_batches
from xfeat.featurize.engines.replayed_network import ReplayedNetwork
from xfeat.featurize.engines.torch_engine import layout_of
from xfeat.featurize.specs import FeatureSpec, PreprocessSpec

Some = Callable[[int, int], np.ndarray]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("pooling", ["final", "multilevel"])
@pytest.mark.parametrize(("fixture", "side"), [("b0_weights", 64), ("lite0_weights", 64), ("lite0_weights", 75)])
def test_features_are_those_of_the_plain_network(
    request: pytest.FixtureRequest, some_pixels: Some, fixture: str, side: int, pooling: str, layout: Any
) -> None:
    weights: Weights = request.getfixturevalue(fixture)
    spec = FeatureSpec(
        backbone=weights.backbone,
        weights_sha256=weights.sha256,
        preprocess=PreprocessSpec(size=side),
        pooling=pooling,
    )
    pixels = torch.from_numpy(some_pixels(3, side))
    with torch.inference_mode():
        expected = FeatureNetwork(load_backbone(spec, weights), spec.preprocess)(pixels)
        found = InferenceNetwork(spec, weights, layout)(pixels)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 1e-5 * max(1, expected.abs().max())


@pytest.mark.parametrize(
    ("device", "precision", "layout"),
    [
        ("cuda:1", "float32", torch.contiguous_format),
        ("cuda", "float16", torch.channels_last),
        ("cuda", "bfloat16", torch.channels_last),
        ("cpu", "float32", torch.channels_last),
        ("cpu", "bfloat16", torch.channels_last),
    ],
)
def test_every_convolution_gets_its_layout_and_precision_and_little_else_is_left(
    lite0_weights: Weights, lite0_spec: FeatureSpec, some_pixels: Some, device: str, precision: str, layout: Any
) -> None:
    """A single map in another layout would put all that follow into it."""
    assert layout_of(torch.device(device), precision) == layout
    network = InferenceNetwork(dataclasses.replace(lite0_spec, precision=precision), lite0_weights, layout)
    seen = []
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    for module in convolutions:
        module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        network(torch.from_numpy(some_pixels(2, 64)))
    assert len(seen) == len(convolutions) == 49
    assert all(maps.is_contiguous(memory_format=layout) for maps in seen)
    assert {maps.dtype for maps in seen} == {getattr(torch, precision)}
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    padded = [module for module in convolutions if isinstance(module.static_padding, nn.ZeroPad2d)]
    assert {module.stride[0] for module in padded} == {2}, "only a stride makes paddings that are not symmetric"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "layout"), [("float32", torch.contiguous_format), ("float16", torch.channels_last)]
)
def test_on_a_gpu_everything_stays_there_in_one_layout(
    lite0_weights: Weights, lite0_spec: FeatureSpec, precision: str, layout: Any
) -> None:
    """torch's fake tensors know their device and the strides that cuDNN gives, and raise where two devices meet."""
    network = InferenceNetwork(dataclasses.replace(lite0_spec, precision=precision), lite0_weights, layout)
    seen = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, inputs, output: seen.append(output))
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        state = {name: fake.from_tensor(value).to("cuda:0") for name, value in network.state_dict().items()}
        pixels = torch.zeros((4, 64, 64, 3), dtype=torch.uint8, device="cuda:0")
        with torch.no_grad():
            features = torch.func.functional_call(network, state, (pixels,))
    assert (features.device, features.dtype) == (torch.device("cuda:0"), torch.float32)
    assert {maps.device for maps in seen} == {torch.device("cuda:0")}
    assert all(maps.is_contiguous(memory_format=layout) for maps in seen)


def test_torchs_cache_is_not_emptied_during_a_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch raises then, on any GPU of the process."""
    locked = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: locked.append(replayed_network._recording.locked()))
    replayed_network.free_cache()
    assert locked == [True]


class RecordedGraph:
    """What a CUDA graph is, on a CPU: the operations of a run, which a replay does again in the same memory."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def replay(self) -> None:
        for function, arguments, keywords, result in self.calls:
            found = function(*arguments, **keywords)
            if isinstance(result, Tensor) and found is not result:
                result.copy_(found)


class Recorder(TorchDispatchMode):
    def __init__(self, graph: RecordedGraph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.graph.calls.append((function, args, kwargs or {}, result))
        return result


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Give torch.cuda's streams, events and graphs to a CPU; return what was recorded, and what goes wrong."""
    facts = SimpleNamespace(recorded=[], blocking=[], fails=None, graph=RecordedGraph)
    stream = SimpleNamespace(wait_stream=lambda other: None, synchronize=lambda: None)
    event = SimpleNamespace(record=lambda: None, synchronize=lambda: None)

    @contextmanager
    def graph(recorded: RecordedGraph, *, stream: Any, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        facts.recorded.append(recorded)
        if facts.fails is not None:
            raise facts.fails
        with Recorder(recorded):
            yield

    for name, value in {
        "device": lambda device: nullcontext(),
        "Stream": lambda device: stream,
        "stream": lambda stream: nullcontext(),
        "current_stream": lambda: stream,
        "CUDAGraph": lambda: facts.graph(),
        "graph": graph,
        "Event": lambda blocking: facts.blocking.append(blocking) or event,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory=False, **rest: empty(*shape, **rest))
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor.clone())
    return facts


@pytest.fixture
def network() -> nn.Module:
    """Return a network whose features, sums and products of pixels, are told apart."""

    class Network(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            values = pixels.float().flatten(1)
            return torch.stack([values.sum(1), values.square().sum(1).sqrt()], dim=1)

    return Network()


def noise(count: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8))


def test_a_graph_is_recorded_once_per_shape_and_replayed_with_new_pixels(
    cuda: SimpleNamespace, network: nn.Module
) -> None:
    replayed = ReplayedNetwork(network, torch.device("cpu"))
    for seed, count in enumerate([8, 8, 8, 4, 4, 8]):
        batch = noise(count, seed)
        assert torch.equal(replayed(batch), network(batch))
    assert len(cuda.recorded) == 3, "8, then 4, then 8 again"
    assert set(cuda.blocking) == {True}, "a thread that spins takes a core from decoding"


def test_two_threads_never_get_each_others_features(cuda: SimpleNamespace, network: nn.Module) -> None:
    replayed = ReplayedNetwork(network, torch.device("cpu"))
    batches = [noise(8, seed) for seed in range(40)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(replayed, batches))
    assert all(torch.equal(features, network(batch)) for features, batch in zip(found, batches, strict=True))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB."), "out of memory"),
        (torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing"), "capturing"),
        ("stale", "other features than a plain run"),
    ],
)
def test_a_graph_that_fails_or_computes_something_else_is_not_used(
    cuda: SimpleNamespace, network: nn.Module, caplog: pytest.LogCaptureFixture, fault: Any, reason: str
) -> None:
    class Stale(RecordedGraph):
        def replay(self) -> None:
            self.calls[-1][3].zero_()

    if fault == "stale":
        cuda.graph = Stale
    else:
        cuda.fails = fault
    replayed = ReplayedNetwork(network, torch.device("cpu"))
    for seed in range(3):
        assert torch.equal(replayed(noise(4, seed)), network(noise(4, seed)))
    assert len(cuda.recorded) == 1
    assert caplog.text.count("without a CUDA graph") == 1
    assert reason in caplog.text


def test_memory_that_is_too_small_halves_the_batch_and_records_it_again(
    cuda: SimpleNamespace, network: nn.Module
) -> None:
    class Small(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            if len(pixels) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return network(pixels)

    replayed = ReplayedNetwork(Small(), torch.device("cpu"))
    engine: Any = SimpleNamespace(name="small", batch_size=16)
    pixels = noise(20, 0).numpy()
    found = halving_batches(engine, pixels, lambda batch: replayed(torch.from_numpy(batch)).numpy())
    assert np.array_equal(found, network(torch.from_numpy(pixels)).numpy())
    assert (engine.batch_size, len(cuda.recorded)) == (4, 1)
