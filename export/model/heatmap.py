"""The colours of heatmaps: in ``xexport explain``, in the server's pictures and on the page."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Viridis at 16 equal steps; lines between them stay within 7 of 255 levels of its table of 256 colours. Its lightness
# grows evenly, also for the colour-blind and in print, and none of its colours is a grey, as those of X-rays are.
# Source: matplotlib 3.10, _cm_listed.py, CC0. The page has the same in serve/page/colours.js.
_VIRIDIS = bytes.fromhex(
    "440154 481a6c 472f7d 414487 39568c 31688e 2a788e 23888e 1f988b 22a884 35b779 54c568 7ad151 a5db36 d2e21b fde725"
)
COLOURS: NDArray[np.uint8] = np.frombuffer(_VIRIDIS, np.uint8).reshape(-1, 3)


def colour_heatmap(
    heatmap: NDArray[np.floating], width: int, height: int
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Enlarge the heatmap of one class, and colour it relative to its highest value.

    Args:
        heatmap: (h, w), 0 or more. NaN and infinity count as 0.
        width: of the result, in pixels.
        height: of the result, in pixels.

    Returns:
        The colours, float64 (height, width, 3), 0 to 255, and how strongly they cover the image, float32 (height,
        width): from 0, where the heatmap is 0, to 1 at its highest value.
    """
    levels = np.clip(np.nan_to_num(heatmap, posinf=0.0), 0, None).astype(np.float32)
    if levels.max() > 0:
        levels = levels / levels.max()
    fine = Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC)
    strength = np.clip(np.asarray(fine), 0, 1)
    steps = np.linspace(0, 1, len(COLOURS))
    return np.stack([np.interp(strength, steps, channel) for channel in COLOURS.T], axis=-1), strength
