"""Images cut into batches, in the form that a model takes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.images.preprocess import Pixels

BATCH_SIZE = 8


def to_nchw(pixels: Pixels) -> NDArray[np.float32]:
    """Turn uint8 (n, S, S, 3) into float32 (n, 3, S, S), as the core model takes them."""
    return np.ascontiguousarray(np.moveaxis(pixels, -1, 1), dtype=np.float32)


def batches(pixels: Pixels) -> Iterator[Pixels]:
    """Cut images (n, …) into batches."""
    return (pixels[first : first + BATCH_SIZE] for first in range(0, len(pixels), BATCH_SIZE))
