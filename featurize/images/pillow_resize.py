"""Pillow's bilinear, antialiased resize in torch, with every bit: for images that are on a GPU already."""

from __future__ import annotations

import torch
from torch import Tensor

# Source: Pillow's libImaging/Resample.c, PRECISION_BITS: weights are whole numbers of 2^-22.
_ONE = float(1 << 22)


def resize_as_pillow(image: Tensor, side: int) -> Tensor:
    """Squash an image to a square as :func:`xfeat.featurize.images.preprocess.resize` does.

    Two matrix products, rounded to whole grey levels after each, as in docs/decisions/0050-resize-in-the-graph.md. In
    double precision sums of whole numbers of 2^-22 are exact in any order, so the result is Pillow's on any device.

    Args:
        image: uint8 (C, H, W).
        side: S.

    Returns:
        uint8 (C, S, S) on the same device.
    """
    height, width = image.shape[1:]
    if (height, width) == (side, side):
        return image
    rows = _weights(height, side, image.device)  # (S, H)
    columns = _weights(width, side, image.device).T  # (W, S)
    # Pillow 13 takes the height first where that saves work.
    if height > side and height > 2 * width - side:
        return _rounded(_rounded(rows @ image.double()).double() @ columns)
    return _rounded(rows @ _rounded(image.double() @ columns).double())


def _weights(before: int, after: int, device: torch.device) -> Tensor:
    """Return the weights (after, before) of a triangle as wide as a pixel of the smaller size."""
    scale = before / after
    support = max(scale, 1.0)
    centre = (torch.arange(after, dtype=torch.float64, device=device) + 0.5) * scale
    first = (centre - support + 0.5).floor().clamp(min=0)[:, None]
    end = (centre + support + 0.5).floor().clamp(max=before)[:, None]
    pixel = torch.arange(before, dtype=torch.float64, device=device)
    triangle = (1 - ((pixel - centre[:, None] + 0.5) / support).abs()).clamp(min=0)
    triangle = torch.where((pixel >= first) & (pixel < end), triangle, 0.0)
    return (triangle / triangle.sum(dim=1, keepdim=True) * _ONE + 0.5).floor() / _ONE


def _rounded(values: Tensor) -> Tensor:
    return (values + 0.5).floor().clamp(0, 255).to(torch.uint8)
