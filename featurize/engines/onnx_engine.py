"""The onnxruntime engine: the default on a CPU. The graph is converted once and kept in the user's cache folder."""

from __future__ import annotations

import hashlib
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.backbones.weights import Weights, sha256_of
from xfeat.featurize.engines.engine import halving_batches
from xfeat.featurize.errors import ModelError
from xfeat.featurize.specs import FeatureSpec
from xfeat.featurize.system.atomic import replacing
from xfeat.featurize.system.cores import cores
from xfeat.featurize.system.onnx_session import ORT_ERRORS, first_line, open_session
from xfeat.featurize.system.user_cache import cache_file

logger = logging.getLogger(__name__)

# Raised whenever the conversion changes, so that graphs made by an older version are not taken for new ones.
GRAPH_VERSION = 1


class OnnxEngine:
    """Runs the network in onnxruntime.

    On a CPU every core takes one image at a time: the activations of one image fit into its cache, those of a batch do
    not, and cores that work on the same image wait for each other at every layer.
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
        self._graph = graph_file(spec, weights)
        self._session = open_session(self._graph, device=device, threads=1, all_on_gpu=False)
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
        return np.concatenate(list(self._pool.map(self._run, np.split(pixels, len(pixels)))))

    def _run(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        try:
            features: NDArray[np.float32] = self._session.run(["features"], {"image": pixels})[0]
        except ORT_ERRORS as error:
            if self._pool is None:  # memory of a GPU, maybe
                raise
            fix = f"delete {self._graph}, which is then converted again"
            what = "the converted network failed"
            raise ModelError(what, path=self._graph, found=first_line(error), fix=fix) from error
        return features


def graph_file(spec: FeatureSpec, weights: Weights) -> Path:
    """Return the network of ``spec`` as an ONNX file, converting it if that has not been done yet.

    Raises:
        OutputError: if there is no place to keep it.
    """
    recipe = f"{GRAPH_VERSION} {spec.backbone} {weights.sha256} {spec.preprocess.of_pixels.fingerprint} {spec.pooling}"
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:16]
    path = cache_file(f"{spec.backbone}-{spec.preprocess.size}-{digest}.onnx")
    record = path.with_suffix(".sha256")
    if not _matches(path, record):
        if path.exists() and record.exists():
            logger.warning("%s has changed since it was converted, and is converted again", path)
        logger.info("converting %s to ONNX, in %s", spec.backbone, path.parent)
        from xfeat.featurize.engines.conversion import convert_feature_network

        convert_feature_network(spec, weights, path)
        with replacing(record) as partial:
            partial.write_text(sha256_of(path))
    return path


def _matches(path: Path, record: Path) -> bool:
    try:
        return record.read_text() == sha256_of(path)
    except (OSError, ValueError):
        return False
