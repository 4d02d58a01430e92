"""The interface of an engine."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Engine(Protocol):
    """Something that turns pixels into features.

    Attributes:
        name: engine and device, for messages.
    """

    name: str

    @property
    def batch_size(self) -> int:
        """Images per call of the network."""
        ...

    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 (N, D) for uint8 (N, S, S, 3) RGB, any N."""
        ...


class ResizableEngine(Engine, Protocol):
    """An engine with batches of any size; it halves them if memory runs out."""

    batch_size: int
