"""The onnxruntime engine: the default on a CPU, and for encoders other than the EfficientNets."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.backbones.weights import Weights
from xfeat.featurize.engines.engine import halving_batches, in_batches
from xfeat.featurize.engines.feature_graph import feature_graph
from xfeat.featurize.errors import ModelError
from xfeat.featurize.specs import FeatureSpec
from xfeat.featurize.system.cores import cores
from xfeat.featurize.system.onnx_session import ORT_ERRORS, first_line, open_session


class OnnxEngine:
    """Runs the network in onnxruntime.

    On a CPU every core takes one image at a time: the activations of one image fit into its cache, those of a batch do
    not, and cores that work on the same image wait for each other at every layer. A graph may fix its batch.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        weights: Weights,
        *,
        device: str,
        threads: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.name = f"onnxruntime on {device}"
        self._graph = feature_graph(spec, weights)
        self._session = open_session(self._graph.path, device=device, threads=1, all_on_gpu=False)
        workers = threads or cores()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="infer") if device == "cpu" else None
        self.batch_size = batch_size or (64 if self._pool is None else 4 * workers)

    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 (N, D) for uint8 (N, S, S, 3) RGB; if GPU memory runs out, the batch is halved.

        Raises:
            DeviceError: if a single image does not fit into memory.
            ModelError: if the network cannot be run.
        """
        if self._pool is None:
            return halving_batches(self, pixels, self._run)
        at_once = self._graph.batch or 1
        parts = [pixels[first : first + at_once] for first in range(0, len(pixels), at_once)]
        return np.concatenate(list(self._pool.map(self._run, parts)))

    def _run(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return in_batches(pixels, self._graph.batch or len(pixels), self._run_graph)

    def _run_graph(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        graph = self._graph
        try:
            output = self._session.run([graph.output_name], {graph.input_name: graph.prepared(pixels)})[0]
        except ORT_ERRORS as error:
            if self._pool is None:  # memory of a GPU, maybe
                raise
            raise ModelError("the network failed", path=graph.path, found=first_line(error), fix=graph.fix) from error
        return graph.features(output)
