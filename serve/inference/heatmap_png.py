"""A heatmap as a picture to lay over the image: transparent where the value is 0, opaque red where it is highest."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# From low to high: blue, cyan, yellow, red. Few colours, so that levels can be told apart by eye.
_STOPS = (0.0, 0.35, 0.7, 1.0)
_COLOURS = np.array([(40, 70, 200), (40, 190, 210), (250, 215, 60), (215, 30, 30)], np.float64)


def draw_heatmap(heatmap: NDArray[np.float32], side: int) -> bytes:
    """Draw the heatmap of one class.

    The highest value is opaque red; a heatmap of zeros is fully transparent. The network's input is the image's box
    (:meth:`PreprocessSpec.box`, mostly the whole image) squashed to a square, so the picture fits when it is stretched
    over that.

    Args:
        heatmap: float32 (h, w), 0 or more.
        side: width and height of the picture in pixels.

    Returns:
        The content of a PNG file, RGBA, ``side`` pixels square.
    """
    levels = np.clip(np.nan_to_num(heatmap, posinf=0.0), 0, None).astype(np.float32)
    if levels.max() > 0:
        levels = levels / levels.max()
    fine = Image.fromarray(levels).resize((side, side), Image.Resampling.BICUBIC)
    strength = np.clip(np.asarray(fine), 0, 1)
    picture = np.empty((side, side, 4), np.uint8)
    for channel in range(3):
        picture[..., channel] = np.interp(strength, _STOPS, _COLOURS[:, channel])
    picture[..., 3] = np.rint(strength * 255)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", compress_level=1)
    return file.getvalue()
