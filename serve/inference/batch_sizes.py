"""Batch sizes (buckets): few, so that a GPU has a session for each.

onnxruntime keeps one plan per convolution. Planning again for another batch size is expected to take 25 to 150 ms, and
a batch 3 to 5 (not measured on a GPU yet). On small batches a GPU waits for its own memory, so padding costs little.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.images.preprocess import Pixels


def bucket_sizes(largest: int) -> list[int]:
    """Return 1, 4, 16, … and the largest size itself."""
    return [*(4**power for power in range(largest.bit_length()) if 4**power < largest), largest]


def bucket_of(images: int, largest: int) -> int:
    """Return the smallest bucket for a number of images; a number above the largest bucket is returned unchanged."""
    return next((size for size in bucket_sizes(largest) if size >= images), images)


def stack(pixels: Sequence[Pixels], size: int) -> NDArray[np.uint8]:
    """Stack images to a batch of a given size, padded with black images.

    Args:
        pixels: uint8 (S, S, 3) each, at least one.
        size: of the batch, at least the number of images.

    Returns:
        uint8 (size, S, S, 3).
    """
    batch = np.zeros((size, *pixels[0].shape), np.uint8)
    np.stack(pixels, out=batch[: len(pixels)])
    return batch
