"""From an image to the network's input: the only implementation, for featurizing and for serving."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xfeat.featurize.images.decode import decode
from xfeat.featurize.specs import PreprocessSpec

Pixels = NDArray[np.uint8]

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def cut(image: Image.Image, spec: PreprocessSpec) -> Image.Image:
    """Cut out the part of an upright image that the network is given; its pixels are unchanged."""
    # `box=` of Pillow's resize is no substitute: its filter also reads the pixels around the box.
    return image.crop(spec.box(*image.size)) if spec.cuts else image


def resize(image: Image.Image, spec: PreprocessSpec) -> Pixels:
    """Cut an image to the spec's box, and squash that to the network's size, with antialiasing.

    Args:
        image: mode ``L`` or ``RGB``, upright, any size.
        spec: the box, the filter, and the side S of the result.

    Returns:
        uint8 array (S, S, 3), RGB; without a box the same pixels as ``torchvision.transforms.Resize((S, S))`` on the
        RGB image.
    """
    return squash(cut(image, spec), spec)


def squash(image: Image.Image, spec: PreprocessSpec) -> Pixels:
    """Resize what :func:`cut` returns; see :func:`resize`."""
    side = (spec.size, spec.size)
    if image.size != side:
        image = image.resize(side, FILTERS[spec.interpolation])
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def load_pixels(data: bytes, spec: PreprocessSpec) -> Pixels:
    """Decode the bytes of an image file, cut it and resize it.

    Args:
        data: content of an image file.
        spec: how it is read, the box, and the side S of the result.

    Returns:
        uint8 array (S, S, 3), RGB.

    Raises:
        ImageError: if the bytes cannot be decoded.
    """
    return resize(decode(data, spec), spec)
