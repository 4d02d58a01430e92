"""The torch engine: the default on a GPU."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from featurize.network import FeatureNetwork, load_backbone
from featurize.specs import FeatureSpec
from featurize.weights import Weights


class TorchEngine:
    """Runs the network in torch; on a GPU channels-last and in half precision.

    The half precision path needs a GPU and has not been run on one yet: see docs/decisions/0003-engines.md.
    """

    def __init__(self, spec: FeatureSpec, weights: Weights, *, device: str, threads: int | None = None) -> None:
        self.device = torch.device(device)
        self.name = f"torch on {device}"
        self.batch_size = 128 if self.device.type == "cuda" else 8
        if threads is not None and self.device.type == "cpu":
            torch.set_num_threads(threads)
        network = FeatureNetwork(load_backbone(spec, weights), spec.preprocess).to(self.device)
        self._network = network.to(memory_format=torch.channels_last)

    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 (N, D) for uint8 (N, S, S, 3) RGB."""
        on_gpu = self.device.type == "cuda"
        batch = torch.from_numpy(pixels)
        if on_gpu:
            batch = batch.pin_memory().to(self.device, non_blocking=True)
        with torch.inference_mode(), torch.autocast(self.device.type, torch.float16, enabled=on_gpu):
            result: NDArray[np.float32] = self._network(batch).float().cpu().numpy()
        return result
