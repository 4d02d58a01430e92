"""Features on a GPU, against those of the plain network on the CPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from xfeat.featurize.backbones.network import FeatureNetwork, load_backbone
from xfeat.featurize.backbones.weights import Weights
from xfeat.featurize.engines.replayed_network import ReplayedNetwork
from xfeat.featurize.engines.torch_engine import TorchEngine
from xfeat.featurize.errors import DeviceError
from xfeat.featurize.specs import FeatureSpec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU that torch can use"),
]
Some = Callable[[int, int], np.ndarray]


@pytest.fixture(scope="module")
def expected(lite0_weights: Weights, lite0_spec: FeatureSpec, some_pixels: Some) -> np.ndarray:
    """Return the features of 20 images, computed by the plain network on the CPU."""
    with torch.inference_mode():
        network = FeatureNetwork(load_backbone(lite0_spec, lite0_weights), lite0_spec.preprocess)
        features: np.ndarray = network(torch.from_numpy(some_pixels(20, 64))).numpy()
    return features


@pytest.fixture
def engine(lite0_weights: Weights, lite0_spec: FeatureSpec) -> TorchEngine:
    return TorchEngine(lite0_spec, lite0_weights, device="cuda:0", batch_size=8)


def far(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(("precision", "most"), [("float32", 1e-4), ("float16", 0.05), ("bfloat16", 0.3)])
def test_features_are_those_of_the_cpu(
    lite0_weights: Weights,
    lite0_spec: FeatureSpec,
    some_pixels: Some,
    expected: np.ndarray,
    precision: str,
    most: float,
) -> None:
    spec = dataclasses.replace(lite0_spec, precision=precision)
    engine = TorchEngine(spec, lite0_weights, device="cuda:0", batch_size=8)
    found = engine.features(some_pixels(20, 64))
    assert found.dtype == np.float32
    assert far(found, expected) < most
    assert isinstance(engine._network, ReplayedNetwork)
    assert engine._network._graph is not None, "replayed as a CUDA graph"


def test_threads_and_repeated_runs_give_the_same_bits(engine: TorchEngine, some_pixels: Some) -> None:
    pixels = some_pixels(20, 64)
    found = engine.features(pixels)
    with ThreadPoolExecutor(2) as pool:
        turned = list(pool.map(lambda number: engine.features(np.roll(pixels, number, 0)), range(8)))
    assert all(np.array_equal(np.roll(each, -number, 0), found) for number, each in enumerate(turned))


@pytest.fixture
def allow() -> Iterator[Callable[[int], None]]:
    """Return a function that limits the memory of this process to so many bytes more than it holds."""
    total = torch.cuda.mem_get_info(0)[1]

    def limit(more: int) -> None:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved(0) + more) / total))

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def test_memory_that_is_too_small_halves_the_batch(
    engine: TorchEngine, some_pixels: Some, expected: np.ndarray, allow: Callable[[int], None]
) -> None:
    """1024 images of 64 pixels need more than 200 MB for their first maps alone."""
    engine.features(some_pixels(1, 64))
    allow(150 << 20)
    engine.batch_size = 1024
    pixels = np.concatenate([some_pixels(20, 64)] * 52)
    found = engine.features(pixels)
    assert 1 <= engine.batch_size < 1024
    assert far(found[-20:], expected) < 1e-4


def test_a_full_card_is_one_message(
    lite0_weights: Weights, lite0_spec: FeatureSpec, some_pixels: Some, allow: Callable[[int], None]
) -> None:
    allow(0)
    with pytest.raises(DeviceError, match=r"nvidia-smi"):
        TorchEngine(lite0_spec, lite0_weights, device="cuda:0", batch_size=8).features(some_pixels(1, 64))
