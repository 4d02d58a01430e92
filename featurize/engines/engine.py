"""The interface of an engine, and its batches."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.errors import DeviceError
from xfeat.featurize.gpu.memory import is_out_of_memory
from xfeat.featurize.system.onnx_session import first_line

logger = logging.getLogger(__name__)

Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


class Engine(Protocol):
    """Something that turns pixels into features.

    Attributes:
        name: engine and device, for messages.
        batch_size: images per call of the network. An engine on a GPU halves it if memory runs out.
    """

    name: str
    batch_size: int

    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 (N, D) for uint8 (N, S, S, 3) RGB, any N."""
        ...


def halving_batches(
    engine: Engine, pixels: NDArray[np.uint8], run: Run, *, free: Callable[[], None] = lambda: None
) -> NDArray[np.float32]:
    """Run a network over images uint8 (N, S, S, 3) in batches: float32 (N, D).

    Whenever GPU memory runs out, ``free`` gives back what the failed batch held, and the engine's batch size is halved.

    Raises:
        DeviceError: if a single image does not fit into memory.
    """
    while True:
        size = engine.batch_size
        try:
            return in_batches(pixels, size, run)
        except Exception as error:  # onnxruntime's have no common root
            if not is_out_of_memory(error):
                raise
            if size == 1:
                raise out_of_memory(f"{engine.name}: out of memory with a single image", error) from error
        free()  # only here: inside the except block, the traceback keeps all tensors alive
        if engine.batch_size >= size:  # another call may have halved it meanwhile
            engine.batch_size = size // 2
            logger.warning("out of GPU memory: continuing with batches of %d", engine.batch_size)


def out_of_memory(what: str, error: Exception) -> DeviceError:
    """Return the message for GPU memory that cannot hold what is needed at least."""
    return DeviceError(
        what,
        found=first_line(error),
        fix="free GPU memory by stopping other processes (nvidia-smi), or use a smaller --size or another --device",
    )


def in_batches(pixels: NDArray[np.uint8], batch_size: int, run: Run) -> NDArray[np.float32]:
    """Run a network over images uint8 (N, S, S, 3) in batches of one size, padded with black ones: float32 (N, D).

    Libraries choose algorithms by shape, and their results differ in the last bits: in torch, features of one image in
    batches of 3 and of 8 differ by 1e-5. With one shape a stopped and resumed run gives the same bits.
    """
    results = []
    for first in range(0, len(pixels), batch_size):
        batch = pixels[first : first + batch_size]
        count = len(batch)
        if count < batch_size:
            padding = np.zeros((batch_size - count, *pixels.shape[1:]), np.uint8)
            batch = np.concatenate([batch, padding])
        results.append(run(batch)[:count])
    return np.concatenate(results)
