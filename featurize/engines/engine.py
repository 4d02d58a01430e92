"""What every engine is."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Engine(Protocol):
    """Something that turns pixels into features.

    Attributes:
        name: what ran, for people: engine and device.
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
    """An engine that takes batches of any size, and halves them by itself if its memory refuses."""

    batch_size: int
