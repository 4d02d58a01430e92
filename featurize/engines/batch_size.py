"""The fastest batch size of a device, found by measuring."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import numpy as np

from xfeat.featurize.engines.engine import Engine

logger = logging.getLogger(__name__)

_FIRST, _LARGEST = 8, 1024
# Doubling the batch must be at least so much faster.
_MIN_GAIN = 1.05
_CALLS = 3


def find_batch_size(engine: Engine, side: int, *, clock: Callable[[], float] = time.perf_counter) -> None:
    """Double an engine's batch size until that is no longer faster, or memory runs out.

    The size depends on measured times: another search may give another one.

    Args:
        engine: its batch size is set.
        side: of the network's input in pixels.
        clock: seconds.
    """
    best_size, best_rate = 1, 0.0
    size = _FIRST
    while size <= _LARGEST:
        engine.batch_size = size
        rate = _images_per_second(engine, side, clock)
        if engine.batch_size < size:  # memory ran out, and the engine halved it
            best_size = engine.batch_size
            break
        if rate < _MIN_GAIN * best_rate:
            break
        best_size, best_rate = size, rate
        size *= 2
    engine.batch_size = best_size
    logger.info("batches of %d images are fastest on %s", best_size, engine.name)


def _images_per_second(engine: Engine, side: int, clock: Callable[[], float]) -> float:
    size = engine.batch_size
    pixels = np.zeros((size, side, side, 3), np.uint8)
    engine.features(pixels)  # the first call of a shape selects algorithms and allocates memory
    seconds = []
    for _ in range(_CALLS):
        started = clock()
        engine.features(pixels)
        seconds.append(clock() - started)
    return size / min(seconds)
