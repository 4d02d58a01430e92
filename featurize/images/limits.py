"""How large an image may be, and how often it may be gone over."""

from __future__ import annotations

from xfeat.featurize.errors import ImageError

MAX_PIXELS = 100_000_000
"""A 140 kB PNG can hold 144 megapixels. The largest detectors in radiography have about 20."""
MAX_DECODED_PIXELS = 20 * MAX_PIXELS
"""In all scans of a JPEG, or in all frames that an animation builds on: together 20 of the largest images."""


def check_size(width: int, height: int) -> None:
    """Refuse an image of more than :data:`MAX_PIXELS`, before it is decoded.

    Raises:
        ImageError: with its size.
    """
    if width * height > MAX_PIXELS:
        raise ImageError(f"{width}×{height} is more than {MAX_PIXELS // 1_000_000} megapixels")
