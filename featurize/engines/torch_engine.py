"""The torch engine: the default on a GPU."""

from __future__ import annotations

import logging
from contextlib import nullcontext

import numpy as np
import torch
from numpy.typing import NDArray

from featurize.engines.batches import in_batches
from featurize.network import FeatureNetwork, load_backbone
from featurize.specs import FeatureSpec
from featurize.weights import Weights

logger = logging.getLogger(__name__)


class TorchEngine:
    """Runs the network in torch, in float32 without TF32 on a GPU too, or with autocast to fewer bits.

    docs/decisions/0010-float32-features.md has the reasons.

    What concerns a GPU has not been run on one yet.
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
        self.device = torch.device(device)
        self._lower = None if spec.precision == "float32" else getattr(torch, spec.precision)
        self.name = f"torch on {device}"
        self.batch_size = batch_size or (128 if self.device.type == "cuda" else 8)
        # For the whole process: set around each call, one device's thread would take it back while another computes.
        torch.backends.cudnn.allow_tf32 = False
        if threads is not None and self.device.type == "cpu":
            torch.set_num_threads(threads)
        network = FeatureNetwork(load_backbone(spec, weights), spec.preprocess).to(self.device)
        self._network = network.to(memory_format=torch.channels_last)

    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 (N, D) for uint8 (N, S, S, 3) RGB; a batch that the GPU cannot hold is halved."""
        while True:
            try:
                return in_batches(pixels, self.batch_size, self._run)
            except torch.cuda.OutOfMemoryError:
                if self.batch_size == 1:
                    raise
                self.batch_size //= 2
                torch.cuda.empty_cache()
                logger.warning("the GPU is out of memory: going on with batches of %d", self.batch_size)

    def _run(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        on_gpu = self.device.type == "cuda"
        batch = torch.from_numpy(pixels)
        if on_gpu:
            batch = batch.pin_memory().to(self.device, non_blocking=True)
        lower = torch.autocast(self.device.type, self._lower) if self._lower is not None else nullcontext()
        with torch.inference_mode(), lower:
            result: NDArray[np.float32] = self._network(batch).cpu().numpy()
        return result
