"""Several devices behind one engine."""

from __future__ import annotations

from collections.abc import Sequence
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.engines.engine import Engine


def concurrent_calls_of(engine: Engine) -> int:
    """Return how many calls of an engine may run at a time; one by default."""
    return getattr(engine, "concurrent_calls", 1)


class DeviceGroup:
    """Several devices, each with the network: a call goes to a free one.

    Attributes:
        batch_size: images per call: the smallest batch size of the members.
        concurrent_calls: calls that may run at a time, on all members together.
    """

    def __init__(self, members: Sequence[Engine]) -> None:
        self._members = members
        self.name = ", ".join(member.name for member in members)
        self.batch_size = min(member.batch_size for member in members)
        self._free: SimpleQueue[Engine] = SimpleQueue()
        self.concurrent_calls = sum(concurrent_calls_of(member) for member in members)
        for turn in range(self.concurrent_calls):
            for member in members:
                if turn < concurrent_calls_of(member):
                    self._free.put(member)

    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 (N, D) for uint8 (N, S, S, 3) RGB; at most ``concurrent_calls`` threads may call it."""
        engine = self._free.get()
        # A member that ran out of memory sets the size for all: its calls would otherwise be padded with black images.
        self.batch_size = engine.batch_size = min(member.batch_size for member in self._members)
        try:
            return engine.features(pixels)
        finally:
            self._free.put(engine)
