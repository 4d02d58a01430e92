"""The batch size with which a device is fastest, found by trying."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import numpy as np

from xfeat.featurize.engines.engine import ResizableEngine

logger = logging.getLogger(__name__)

_FIRST, _LARGEST = 8, 1024
# Twice the memory has to bring at least this much.
_MIN_GAIN = 1.05
_CALLS = 3


def find_batch_size(engine: ResizableEngine, side: int, *, clock: Callable[[], float] = time.perf_counter) -> int:
    """Double the batch until that brings no more images a second, or until memory refuses.

    Args:
        engine: is left with the size that was found.
        side: of the network's input in pixels.
        clock: seconds.

    Returns:
        Images per call. It depends on times that were measured: another search may find another.
    """
    best_size, best_rate = 1, 0.0
    size = _FIRST
    while size <= _LARGEST:
        engine.batch_size = size
        rate = _images_per_second(engine, side, clock)
        if engine.batch_size < size:  # memory refused, and it was halved
            best_size = engine.batch_size
            break
        if rate < _MIN_GAIN * best_rate:
            break
        best_size, best_rate = size, rate
        size *= 2
    engine.batch_size = best_size
    logger.info("batches of %d images suit %s", best_size, engine.name)
    return best_size


def _images_per_second(engine: ResizableEngine, side: int, clock: Callable[[], float]) -> float:
    size = engine.batch_size
    pixels = np.zeros((size, side, side, 3), np.uint8)
    engine.features(pixels)  # the first call of a shape chooses algorithms and takes memory
    seconds = []
    for _ in range(_CALLS):
        started = clock()
        engine.features(pixels)
        seconds.append(clock() - started)
    return size / min(seconds)
