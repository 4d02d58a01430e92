"""From decoded pixels to the network's input: the one implementation for caching and for serving."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xfeat.featurize.images.decode import decode
from xfeat.featurize.specs import PreprocessSpec

Pixels = NDArray[np.uint8]


def resize(image: Image.Image, spec: PreprocessSpec) -> Pixels:
    """Squash an image to the network's size, bilinear with antialiasing.

    Args:
        image: mode ``L`` or ``RGB``, any size.
        spec: gives the side S of the result.

    Returns:
        uint8 array (S, S, 3), RGB; the same pixels as ``torchvision.transforms.Resize((S, S))`` on the RGB image.
    """
    side = (spec.size, spec.size)
    if image.size != side:
        image = image.resize(side, Image.Resampling.BILINEAR)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def load_pixels(data: bytes, spec: PreprocessSpec) -> Pixels:
    """Decode the bytes of an image file and resize it.

    Args:
        data: content of an image file.
        spec: gives the side S of the result.

    Returns:
        uint8 array (S, S, 3), RGB.

    Raises:
        ImageError: if the bytes are no readable image.
    """
    return resize(decode(data), spec)


def normalize(pixels: Pixels, spec: PreprocessSpec) -> NDArray[np.float32]:
    """Scale to 0..1, subtract the mean and divide by the standard deviation, channel by channel.

    The networks do this inside their graph; this is the same arithmetic in numpy, for those who run a bare network.

    Args:
        pixels: uint8 array (..., S, S, 3).
        spec: gives mean and std.

    Returns:
        float32 array (..., 3, S, S).
    """
    scaled = pixels.astype(np.float32) / np.float32(255)
    normalized = (scaled - np.asarray(spec.mean, np.float32)) / np.asarray(spec.std, np.float32)
    return np.ascontiguousarray(np.moveaxis(normalized, -1, -3))
