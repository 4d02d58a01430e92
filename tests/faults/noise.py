"""Images of noise, and the features that are computed from them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from PIL import Image


def draw_noise(root: Path, count: int = 40, *, classes: Sequence[str] = ("covid", "normal")) -> Path:
    """Draw images that were settled long ago, in a folder per class, or in one folder without classes."""
    random = np.random.default_rng(0)
    for index in range(count):
        path = root / (classes[index % len(classes)] if classes else "") / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 44), dtype=np.uint8)).save(path)
        os.utime(path, (1_600_000_000, 1_600_000_000))
    return root


def features_of(path: Path) -> np.ndarray:
    """Read the features in a cache."""
    with h5py.File(path) as file:
        return np.asarray(file["features"])
