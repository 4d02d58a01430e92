"""Engines run one and the same frozen network: pixels in, features out. :func:`open_engine` chooses."""

from __future__ import annotations

import importlib.util
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from featurize.errors import SpecError
from featurize.specs import ENGINES, FeatureSpec
from featurize.weights import Weights


class Engine(Protocol):
    """Something that turns pixels into features.

    Attributes:
        name: what ran, for people: engine and device.
        batch_size: images per call of the network.
    """

    name: str
    batch_size: int

    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 (N, D) for uint8 (N, S, S, 3) RGB, any N."""
        ...


def open_engine(
    spec: FeatureSpec,
    weights: Weights,
    *,
    engine: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    batch_size: int | None = None,
) -> Engine:
    """Load the network of ``spec`` into an engine.

    Args:
        spec: what to compute.
        weights: the backbone's weights.
        engine: ``torch``, ``onnxruntime``, ``openvino`` (CPU only), or ``auto``: torch on a GPU, onnxruntime on a CPU.
        device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto``: a GPU if there is one.
        threads: CPU threads for inference; by default all cores.
        batch_size: images per call of the network; by default what suits the engine.

    Raises:
        SpecError: if there is no such engine or device.
        DeviceError: if the device that was asked for is not there.
        MissingExtraError: if the engine is not installed.
        WeightsError: if the weights are not those of the backbone.
    """
    if engine not in ENGINES:
        raise SpecError("unknown engine", expected=", ".join(ENGINES), found=engine)
    if engine == "openvino":
        if device not in ("auto", "cpu"):
            raise SpecError("openvino runs on the CPU here", expected="--device cpu", found=device)
        from featurize.engines.openvino_engine import OpenvinoEngine

        return OpenvinoEngine(spec, weights, threads=threads, batch_size=batch_size)
    if device != "cpu":
        device = _resolve_device(device)
    if engine == "torch" or (engine == "auto" and device != "cpu"):
        from featurize.engines.torch_engine import TorchEngine

        return TorchEngine(spec, weights, device=device, threads=threads, batch_size=batch_size)
    from featurize.engines.onnx_engine import OnnxEngine

    return OnnxEngine(spec, weights, device=device, threads=threads, batch_size=batch_size)


def _resolve_device(device: str) -> str:
    # Looking for a GPU costs the import of torch. A machine without NVIDIA's driver is told apart for nothing.
    from featurize.cuda import cuda_driver_present
    from featurize.engines.devices import resolve_device

    if device == "auto" and (not cuda_driver_present() or importlib.util.find_spec("torch") is None):
        return "cpu"
    return resolve_device(device)
