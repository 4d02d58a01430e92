"""A network on a GPU that is launched as one CUDA graph: no time of the processor per layer, and none of its cores.

Not run on a GPU yet.

Source: https://docs.pytorch.org/docs/stable/notes/cuda.html, "CUDA Graphs".
"""

from __future__ import annotations

import logging
import threading

import torch
from torch import Tensor, nn

from xfeat.featurize.system.onnx_session import first_line

logger = logging.getLogger(__name__)

# A replay does the same arithmetic as the recorded run; a larger difference means a wrong address.
_RELATIVE, _ABSOLUTE = 1e-2, 1e-3

# torch allows one recording at a time in a process, and no emptying of its cache meanwhile.
_recording = threading.Lock()


def free_cache() -> None:
    """Give memory that torch keeps for later back to the GPU."""
    with _recording:
        torch.cuda.empty_cache()


class ReplayedNetwork:
    """Computes batches of one shape after another; a new shape is recorded first. Several threads may call it.

    Args:
        network: from pixels to features, in evaluation mode, on ``device``.
        device: a GPU.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self._network = network
        self._device = device
        self._lock = threading.Lock()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._pixels = self._features = torch.empty(0)

    def __call__(self, batch: Tensor) -> Tensor:
        """Return float32 (N, D) on the CPU for uint8 (N, S, S, 3) on the CPU."""
        with torch.cuda.device(self._device):
            # torch reuses pinned memory only after the copies that use it have ended.
            pinned = batch.pin_memory()
            with self._lock:  # until the copy back is queued: the next batch goes into the same memory
                if self._pixels.shape != batch.shape:
                    self._record(pinned)
                self._pixels.copy_(pinned, non_blocking=True)
                if self._graph is not None:
                    self._graph.replay()
                else:
                    self._features = self._network(self._pixels)
                result = torch.empty(self._features.shape, pin_memory=True)
                result.copy_(self._features, non_blocking=True)
                # The thread sleeps while it waits; spinning would take a core from decoding.
                done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
                done.record()
            done.synchronize()
        return result

    def _record(self, batch: Tensor) -> None:
        """Record the network for batches of this shape, or let it run without a graph if that fails."""
        torch.cuda.current_stream().synchronize()  # the last shape may still be computing for another thread
        self._graph = None
        self._pixels = self._features = torch.empty(0)  # gives back the memory of the last shape
        pixels = batch.to(self._device)
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            plain = self._network(pixels)  # selects algorithms and loads kernels; if memory runs out, then here
        torch.cuda.current_stream().wait_stream(stream)
        try:
            graph = torch.cuda.CUDAGraph()
            # In other threads, batches for this and other devices go on meanwhile.
            with _recording, torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                features = self._network(pixels)
            graph.replay()
            if not torch.allclose(features, plain, _RELATIVE, _ABSOLUTE, equal_nan=True):
                raise RuntimeError("a replay gives other features than a plain run")
            self._graph, self._features = graph, features
        except RuntimeError as error:
            logger.warning("the network runs on %s without a CUDA graph: %s", self._device, first_line(error))
        self._pixels = pixels
