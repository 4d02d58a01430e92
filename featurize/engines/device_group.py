"""Several devices behind one engine."""

from __future__ import annotations

from collections.abc import Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from xfeat.featurize.engines.engine import Engine, ResizableEngine


def concurrent_calls_of(engine: Engine) -> int:
    """Return how many calls an engine takes at a time; one unless it says otherwise."""
    return getattr(engine, "concurrent_calls", 1)


class DeviceGroup:
    """Several devices, each with the network: a call goes to one that is free.

    Attributes:
        members: an engine a device.
        concurrent_calls: calls that can run at a time, those of all members.
    """

    def __init__(self, members: Sequence[ResizableEngine]) -> None:
        self.members = members
        self.name = ", ".join(member.name for member in members)
        self._free: SimpleQueue[ResizableEngine] = SimpleQueue()
        self.concurrent_calls = sum(concurrent_calls_of(member) for member in members)
        for turn in range(self.concurrent_calls):
            for member in members:
                if turn < concurrent_calls_of(member):
                    self._free.put(member)

    @property
    def batch_size(self) -> int:
        """Images per call: what all members can hold."""
        return min(member.batch_size for member in self.members)

    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 (N, D) for uint8 (N, S, S, 3) RGB; to be called from one thread a lane."""
        engine = self._free.get()
        # One that ran out of memory sets the size for all: smaller calls would be filled up with black images.
        engine.batch_size = self.batch_size
        try:
            return engine.features(pixels)
        finally:
            self._free.put(engine)
