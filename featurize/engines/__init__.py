"""Runtimes of the frozen network: pixels in, features out. May import system and backbones."""

from __future__ import annotations

from typing import Literal

from xfeat.featurize.backbones.registry import is_foreign
from xfeat.featurize.backbones.weights import Weights
from xfeat.featurize.engines.batch_size import find_batch_size
from xfeat.featurize.engines.device_group import DeviceGroup
from xfeat.featurize.engines.engine import Engine as Engine
from xfeat.featurize.errors import SpecError
from xfeat.featurize.specs import ENGINES, FeatureSpec
from xfeat.featurize.system.cores import cores
from xfeat.featurize.system.devices import resolve_devices

BatchSize = int | Literal["auto"] | None
"""Images per call of the network; ``auto`` measures which is fastest, ``None`` takes the default of the engine."""


def open_engine(
    spec: FeatureSpec,
    weights: Weights,
    *,
    engine: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    batch_size: BatchSize = None,
) -> Engine:
    """Load the network of ``spec`` into an engine, on one device or on several.

    Args:
        spec: what to compute.
        weights: the backbone's weights.
        engine: ``torch``, ``onnxruntime`` (float32 only), ``openvino`` (CPU only), or ``auto``: torch on a GPU and for
            a precision other than float32, else onnxruntime; onnxruntime for an encoder in an ONNX file.
        device: ``cpu``, ``cuda``, ``cuda:N``, several with commas, or ``auto``: a GPU if there is one.
        threads: CPU threads for inference; by default all cores.
        batch_size: images per call of the network on each device.

    Raises:
        SpecError: if the engine or device is unknown, or the engine does not compute in the spec's precision.
        DeviceError: if the requested device does not exist.
        MissingExtraError: if the engine is not installed.
        WeightsError: if the weights belong to another backbone.
    """
    if engine not in ENGINES or engine == "ray":
        raise SpecError("unknown engine", expected=", ".join(name for name in ENGINES if name != "ray"), found=engine)
    if is_foreign(spec.backbone):
        engine = "onnxruntime" if engine == "auto" else engine
        if engine == "torch":
            raise SpecError(
                "torch cannot run an ONNX file",
                expected="--engine onnxruntime or openvino",
                found=f"{spec.backbone} with --engine torch",
            )
    check_precision(engine, spec.precision)
    if engine == "openvino":
        if device not in ("auto", "cpu"):
            raise SpecError("openvino runs on the CPU only", expected="--device cpu", found=device)
        if batch_size == "auto":
            raise SpecError("openvino needs a fixed batch size", expected="--batch-size N", found="auto")
        from xfeat.featurize.engines.openvino_engine import OpenvinoEngine

        return OpenvinoEngine(spec, weights, threads=threads, batch_size=batch_size)
    devices = resolve_devices(device, engine)
    if len(devices) > 1 and devices[0] == "cpu":
        threads = max(1, (threads or cores()) // len(devices))
    first = _open_one(spec, weights, engine, devices[0], threads, batch_size)
    others = [_open_one(spec, weights, engine, name, threads, first.batch_size) for name in devices[1:]]
    return DeviceGroup([first, *others]) if others else first


def check_precision(engine: str, precision: str) -> None:
    """Check that an engine can compute in a precision.

    Raises:
        SpecError: if it cannot.
    """
    if engine == "onnxruntime" and precision != "float32":
        raise SpecError(
            "onnxruntime computes in float32 only",
            expected="--engine torch or openvino",
            found=f"--precision {precision}",
        )


def _open_one(
    spec: FeatureSpec, weights: Weights, engine: str, device: str, threads: int | None, batch_size: BatchSize
) -> Engine:
    size = None if batch_size == "auto" else batch_size
    opened: Engine
    if engine == "torch" or (engine == "auto" and (device != "cpu" or spec.precision != "float32")):
        from xfeat.featurize.engines.torch_engine import TorchEngine

        opened = TorchEngine(spec, weights, device=device, threads=threads, batch_size=size)
    else:
        from xfeat.featurize.engines.onnx_engine import OnnxEngine

        opened = OnnxEngine(spec, weights, device=device, threads=threads, batch_size=size)
    if batch_size == "auto":
        find_batch_size(opened, spec.preprocess.size)
    return opened
