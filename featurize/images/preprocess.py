"""Resizes images for the network: the only implementation, for featurizing and for serving."""

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
        spec: how it is read, and the side S of the result.

    Returns:
        uint8 array (S, S, 3), RGB.

    Raises:
        ImageError: if the bytes cannot be decoded.
    """
    return resize(decode(data, spec), spec)
