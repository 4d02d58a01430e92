"""The torch engine: the default on a GPU."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xfeat.featurize.backbones.network import FeatureNetwork, load_backbone
from xfeat.featurize.backbones.weights import Weights
from xfeat.featurize.engines.engine import halving_batches, out_of_memory
from xfeat.featurize.gpu.memory import is_out_of_memory
from xfeat.featurize.specs import FeatureSpec


class TorchEngine:
    """Runs the network in torch, in float32 without TF32 on a GPU too, or with autocast to fewer bits.

    The reasons are in docs/decisions/0010-float32-features.md. The GPU code has not been run on a GPU yet.

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
        self._lower = None if spec.precision == "float32" else getattr(torch, spec.precision)
        self.name = f"torch on {device}"
        # While the GPU computes one batch, a second thread puts the next into pinned memory and queues it.
        self.concurrent_calls = 2 if self.device.type == "cuda" else 1
        self.batch_size = batch_size or (128 if self.device.type == "cuda" else 8)
        # For the whole process: set around each call, one device's thread would reset it while another computes.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        if threads is not None and self.device.type == "cpu":
            torch.set_num_threads(threads)
        network = FeatureNetwork(load_backbone(spec, weights), spec.preprocess)
        try:
            self._network = network.to(self.device).to(memory_format=torch.channels_last)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise out_of_memory(f"{self.device} has no room for the network", error) from error

    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 (N, D) for uint8 (N, S, S, 3) RGB; if GPU memory runs out, the batch is halved.

        Raises:
            DeviceError: if a single image does not fit into memory.
        """
        return halving_batches(self, pixels, self._run, free=torch.cuda.empty_cache)

    def _run(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        lower = torch.autocast(self.device.type, self._lower) if self._lower is not None else nullcontext()
        with torch.inference_mode(), lower:
            batch = torch.from_numpy(pixels)
            found = self._run_on_gpu(batch) if self.device.type == "cuda" else self._network(batch)
            result: NDArray[np.float32] = found.numpy()
        return result

    def _run_on_gpu(self, batch: Tensor) -> Tensor:
        """Copy there and back through pinned memory; wait for this batch, not for that of another call."""
        # torch reuses pinned memory only after the copies that use it have ended.
        with torch.cuda.device(self.device):
            found = self._network(batch.pin_memory().to(self.device, non_blocking=True))
            result = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
            result.copy_(found, non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()
            done.synchronize()
        return result
