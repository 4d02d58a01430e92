"""The OpenVINO engine, for processors on which it is faster than onnxruntime."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.backbones.weights import Weights
from xfeat.featurize.engines.engine import in_batches
from xfeat.featurize.engines.feature_graph import feature_graph
from xfeat.featurize.errors import DeviceError, needs_extra
from xfeat.featurize.specs import FeatureSpec
from xfeat.featurize.system.cores import cores

_HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


class OpenvinoEngine:
    """Runs the network in OpenVINO on the CPU, in the precision of the spec and not in the one OpenVINO prefers.

    Raises:
        MissingExtraError: if OpenVINO is not installed.
        DeviceError: if this processor does not compute in that precision.
    """

    def __init__(
        self, spec: FeatureSpec, weights: Weights, *, threads: int | None = None, batch_size: int | None = None
    ) -> None:
        with needs_extra("openvino"):
            import openvino
        self._graph = feature_graph(spec, weights)
        self.batch_size = self._graph.batch or batch_size or 8
        core = openvino.Core()
        self.name = "openvino on cpu"
        model = core.read_model(self._graph.path)
        model.reshape(self._graph.input_shape(self.batch_size))
        options = {
            "INFERENCE_PRECISION_HINT": _HINTS[spec.precision],
            "INFERENCE_NUM_THREADS": threads or cores(),
            "PERFORMANCE_HINT": "LATENCY",  # one batch at a time, on all threads
        }
        compiled = core.compile_model(model, "CPU", options)
        _check_precision(spec.precision, compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
        self._request = compiled.create_infer_request()

    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 (N, D) for uint8 (N, S, S, 3) RGB."""
        return in_batches(pixels, self.batch_size, self._run)

    def _run(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        result = self._request.infer({0: self._graph.prepared(pixels)})[self._graph.output_name]
        # A copy: the next call writes into the same memory.
        return np.array(self._graph.features(result), np.float32)


def _check_precision(wanted: str, taken: str) -> None:
    """Raise if OpenVINO takes another precision: it does so silently on processors that lack the requested one."""
    if taken != _HINTS[wanted]:
        raise DeviceError(
            f"openvino does not compute in {wanted} on this processor",
            expected=_HINTS[wanted],
            found=taken,
            fix="use --engine torch, or --precision float32",
        )
