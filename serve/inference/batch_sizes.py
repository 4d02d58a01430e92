"""Sizes of batches: powers of two, so that a device that prepares itself for each new shape meets few of them.

cuDNN searches for about 600 ms when a batch of a new size comes; warmed buckets spare the first requests that wait.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.images.preprocess import Pixels


def bucket_sizes(largest: int) -> list[int]:
    """Return 1, 2, 4, … and the largest size itself."""
    return [*(1 << power for power in range((largest - 1).bit_length())), largest]


def bucket_of(images: int, largest: int) -> int:
    """Return the smallest bucket that holds so many images; more than the largest are a size of their own."""
    return images if images > largest else min(1 << (images - 1).bit_length(), largest)


def stack(pixels: Sequence[Pixels], size: int) -> NDArray[np.uint8]:
    """Put images into one batch of a given size; what is left of it is black.

    Args:
        pixels: uint8 (S, S, 3) each, at least one.
        size: of the batch, at least the number of images.

    Returns:
        uint8 (size, S, S, 3).
    """
    batch = np.empty((size, *pixels[0].shape), np.uint8)
    np.stack(pixels, out=batch[: len(pixels)])
    batch[len(pixels) :] = 0
    return batch
