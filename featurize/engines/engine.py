"""The interface of an engine, and its batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


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


def in_batches(
    pixels: NDArray[np.uint8], batch_size: int, run: Callable[[NDArray[np.uint8]], NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Run a network over images in batches of one size; the last is padded with black images.

    Libraries choose algorithms by shape, and their results differ in the last bits: in torch, features of one image in
    batches of 3 and of 8 differ by 1e-5. With one shape a stopped and resumed run gives the same bits.

    Args:
        pixels: uint8 (N, S, S, 3).
        batch_size: images per call.
        run: takes uint8 (batch_size, S, S, 3), returns float32 (batch_size, D).

    Returns:
        float32 (N, D).
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
