"""A heatmap as a picture to lay over the image."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xfeat.export.model.heatmap import colour_heatmap


def draw_heatmap(heatmap: NDArray[np.float32], side: int) -> bytes:
    """Draw the heatmap of one class.

    The highest value is opaque yellow; where the heatmap is 0, the picture is transparent. The network's input is the
    image's box (:meth:`PreprocessSpec.box`, mostly the whole image) squashed to a square, so the picture fits when it
    is stretched over that.

    Args:
        heatmap: float32 (h, w), 0 or more.
        side: width and height of the picture in pixels.

    Returns:
        The content of a PNG file, RGBA, ``side`` pixels square.
    """
    colours, strength = colour_heatmap(heatmap, side, side)
    picture = np.dstack([colours, np.rint(strength * 255)]).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", compress_level=1)
    return file.getvalue()
