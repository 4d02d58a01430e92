"""The OpenVINO engine, for processors that it knows better than onnxruntime does."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from featurize.cores import cores
from featurize.engines.batches import in_batches
from featurize.engines.onnx_engine import graph_file
from featurize.errors import MissingExtraError
from featurize.specs import FeatureSpec
from featurize.weights import Weights


class OpenvinoEngine:
    """Runs the network in OpenVINO on the CPU, in float32: docs/decisions/0010-float32-features.md.

    Raises:
        MissingExtraError: if OpenVINO is not installed.
    """

    def __init__(
        self, spec: FeatureSpec, weights: Weights, *, threads: int | None = None, batch_size: int | None = None
    ) -> None:
        try:
            import openvino
        except ModuleNotFoundError as error:
            raise MissingExtraError("openvino is not installed", mend="pip install 'xfeat[openvino]'") from error
        self.batch_size = batch_size or 8
        core = openvino.Core()
        self.name = "openvino on cpu"
        model = core.read_model(graph_file(spec, weights))
        side = spec.preprocess.size
        model.reshape([self.batch_size, side, side, 3])
        options = {
            "INFERENCE_PRECISION_HINT": "f32",  # its own choice is bfloat16 where the processor has it
            "INFERENCE_NUM_THREADS": threads or cores(),
            "PERFORMANCE_HINT": "LATENCY",  # one batch at a time, on all threads
        }
        self._request = core.compile_model(model, "CPU", options).create_infer_request()

    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 (N, D) for uint8 (N, S, S, 3) RGB."""
        return in_batches(pixels, self.batch_size, self._run)

    def _run(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        result = self._request.infer({0: pixels})[0]
        return np.array(result, np.float32)  # a copy: the next call writes into the same memory
