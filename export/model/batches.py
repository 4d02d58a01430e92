"""Images in batches, in the layout that a model takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from xfeat.export.model.progress import Advance
from xfeat.featurize.images.preprocess import Pixels

BATCH_SIZE = 8


def to_nchw(pixels: Pixels) -> NDArray[np.float32]:
    """Convert uint8 (n, S, S, 3) to float32 (n, 3, S, S), the input of the core model."""
    return np.ascontiguousarray(np.moveaxis(pixels, -1, 1), dtype=np.float32)


def in_batches(
    run: Callable[[Pixels], NDArray[np.float32]], pixels: Pixels, advance: Advance = lambda done: None
) -> NDArray[np.float32]:
    """Run a function on batches of images (n, …), and join its results (n, …)."""
    results = []
    for batch in batches(pixels):
        results.append(run(batch))
        advance(len(batch))
    return np.concatenate(results)


def batches(pixels: Pixels) -> Iterator[Pixels]:
    """Split images (n, …) into batches of BATCH_SIZE; the last one may be smaller."""
    return (pixels[first : first + BATCH_SIZE] for first in range(0, len(pixels), BATCH_SIZE))
