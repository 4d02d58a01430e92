"""Reproducible augmented views of an image, which can be cached.

View 0 is the unchanged image. The others depend only on the content of the image and the number of the view, so that a
resumed run, a moved file or another machine gives the same views.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from xfeat.featurize.images.decode import decode
from xfeat.featurize.images.preprocess import FILTERS, Pixels, cut, squash
from xfeat.featurize.specs import PreprocessSpec

# Chosen so that a radiologist would still accept the image as a chest X-ray.
MAX_ROTATION_DEGREES = 7.0
MIN_CROP = 0.85
MAX_BRIGHTNESS_CHANGE = 0.15


def load_views(data: bytes, spec: PreprocessSpec, *, views: int, sha256: str, may_hold_gil: bool = False) -> Pixels:
    """Decode an image file once and make its views.

    Args:
        data: content of an image file.
        spec: how it is read, and the side S of the result.
        views: number of views V, the unchanged one included.
        sha256: of ``data``, 64 hexadecimal digits; seeds the views.
        may_hold_gil: as in :func:`xfeat.featurize.images.decode.decode`.

    Returns:
        uint8 array (V, S, S, 3), RGB; the first is :func:`xfeat.featurize.images.preprocess.load_pixels`'s.

    Raises:
        ImageError: if the bytes cannot be decoded.
    """
    image = cut(decode(data, spec, may_hold_gil=may_hold_gil), spec)
    seed = int(sha256[:16], 16)
    augmented = [_augmented(image, spec, np.random.default_rng((seed, view))) for view in range(1, views)]
    return np.stack([squash(image, spec), *augmented])


def _augmented(image: Image.Image, spec: PreprocessSpec, random: np.random.Generator) -> Pixels:
    """Crop, squash with antialiasing, rotate, flip half of them, and change the brightness."""
    crop = random.uniform(MIN_CROP, 1.0)
    left, top = random.uniform(0.0, 1.0 - crop, 2)
    angle = random.uniform(-MAX_ROTATION_DEGREES, MAX_ROTATION_DEGREES)
    flip = random.random() < 0.5
    brightness = random.uniform(1.0 - MAX_BRIGHTNESS_CHANGE, 1.0 + MAX_BRIGHTNESS_CHANGE)
    width, height = image.size
    box = (left * width, top * height, (left + crop) * width, (top + crop) * height)
    view = image.resize((spec.size, spec.size), FILTERS[spec.interpolation], box=box)
    view = view.rotate(angle, Image.Resampling.BILINEAR)
    if flip:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    view = view.point([min(255, round(level * brightness)) for level in range(256)] * len(view.getbands()))
    return np.asarray(view.convert("RGB"))
