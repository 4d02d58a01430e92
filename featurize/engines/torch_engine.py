"""The torch engine: the default on a GPU."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from xfeat.featurize.backbones.inference_network import InferenceNetwork
from xfeat.featurize.backbones.weights import Weights
from xfeat.featurize.engines.engine import halving_batches, out_of_memory
from xfeat.featurize.engines.replayed_network import ReplayedNetwork, free_cache
from xfeat.featurize.gpu.memory import is_out_of_memory
from xfeat.featurize.specs import FeatureSpec


def layout_of(device: torch.device, precision: str) -> torch.memory_format:
    """Return the fastest memory format: cuDNN's depthwise convolutions in float32 are slow with channels last."""
    contiguous = device.type == "cuda" and precision == "float32"
    return torch.contiguous_format if contiguous else torch.channels_last


class TorchEngine:
    """Runs the network in torch, in float32 without TF32 on a GPU too, or in the spec's lower precision.

    The reasons are in docs/decisions/0010-float32-features.md and 0092-a-gpu-kept-busy.md. The GPU code has not been
    run on a GPU yet.

    Attributes:
        concurrent_calls: calls of :meth:`features` that may run at a time.
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
        self.name = f"torch on {device}"
        # While the GPU computes one batch, a second thread puts the next into pinned memory and queues it.
        self.concurrent_calls = 2 if self.device.type == "cuda" else 1
        self.batch_size = batch_size or (128 if self.device.type == "cuda" else 8)
        # For the whole process: set around each call, one device's thread would reset it while another computes.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        if threads is not None and self.device.type == "cpu":
            torch.set_num_threads(threads)
        network = InferenceNetwork(spec, weights, layout_of(self.device, spec.precision)).eval()
        try:
            network = network.to(self.device)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise out_of_memory(f"{self.device} has no room for the network", error) from error
        self._network = ReplayedNetwork(network, self.device) if self.device.type == "cuda" else network

    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 (N, D) for uint8 (N, S, S, 3) RGB; if GPU memory runs out, the batch is halved.

        Raises:
            DeviceError: if a single image does not fit into memory.
        """
        return halving_batches(self, pixels, self._run, free=free_cache)

    @torch.inference_mode()
    def _run(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        features: NDArray[np.float32] = self._network(torch.from_numpy(pixels)).numpy()
        return features
