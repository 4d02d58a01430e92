"""Batch sizes (buckets): powers of two, so that a GPU meets few different shapes.

For each new batch size cuDNN searches the fastest kernels for about 600 ms. This is done for every bucket before the
first request.
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
    """Return the smallest bucket for a number of images; a number above the largest bucket is returned unchanged."""
    return images if images > largest else min(1 << (images - 1).bit_length(), largest)


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
