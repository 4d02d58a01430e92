"""The OpenVINO engine, for processors on which it is faster than onnxruntime."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.backbones.weights import Weights
from xfeat.featurize.engines.engine import in_batches
from xfeat.featurize.engines.onnx_engine import graph_file
from xfeat.featurize.errors import DeviceError, MissingExtraError
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
        try:
            import openvino
        except ModuleNotFoundError as error:
            raise MissingExtraError("openvino is not installed", fix="pip install 'xfeat-onnx[openvino]'") from error
        self.batch_size = batch_size or 8
        core = openvino.Core()
        self.name = "openvino on cpu"
        model = core.read_model(graph_file(spec, weights))
        side = spec.preprocess.size
        model.reshape([self.batch_size, side, side, 3])
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
        result = self._request.infer({0: pixels})[0]
        return np.array(result, np.float32)  # a copy: the next call writes into the same memory


def _check_precision(wanted: str, taken: str) -> None:
    """Raise if OpenVINO takes another precision: it does so silently on processors that lack the requested one."""
    if taken != _HINTS[wanted]:
        raise DeviceError(
            f"openvino does not compute in {wanted} on this processor",
            expected=_HINTS[wanted],
            found=taken,
            fix="use --engine torch, or --precision float32",
        )
