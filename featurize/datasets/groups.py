"""Groups of images that must stay in one split: images of one patient, and copies of each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def joined_groups(names: Sequence[str], hashes: Sequence[str]) -> NDArray[np.int64]:
    """Number the groups of images: images with the same name or content are in one group, also through other images.

    Args:
        names: group of each image, empty if it has none.
        hashes: digest of each image's content.

    Returns:
        int64 (n,), the row of the group's first image.
    """
    leader = list(range(len(names)))

    def find(row: int) -> int:
        while leader[row] != row:
            leader[row] = leader[leader[row]]
            row = leader[row]
        return row

    first_with: dict[tuple[str, str], int] = {}
    for row, (name, digest) in enumerate(zip(names, hashes, strict=True)):
        for key in (("name", name), ("hash", digest)):
            if key[1]:
                one, other = find(first_with.setdefault(key, row)), find(row)
                leader[max(one, other)] = min(one, other)
    return np.array([find(row) for row in range(len(names))], np.int64)
