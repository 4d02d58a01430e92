"""How large an image may be, and how often it may be gone over."""

from __future__ import annotations

import io

from xfeat.featurize.errors import ImageError

MAX_PIXELS = 100_000_000
"""A 140 kB PNG can hold 144 megapixels. The largest detectors in radiography have about 20."""
MAX_SIDE = 65_535
"""As in JPEG. Resizing takes memory in proportion to the side: for 99 million pixels in a row 1.6 GB."""
MAX_DECODED_PIXELS = 20 * MAX_PIXELS
"""In all scans of a JPEG, or in all frames that an animation builds on: together 20 of the largest images."""


def check_size(width: int, height: int) -> None:
    """Refuse an image of more than :data:`MAX_PIXELS`, or of a side over :data:`MAX_SIDE`, before it is decoded.

    Raises:
        ImageError: with its size.
    """
    if width * height > MAX_PIXELS:
        raise ImageError(f"{width}×{height} is more than {MAX_PIXELS // 1_000_000} megapixels")
    if max(width, height) > MAX_SIDE:
        raise ImageError(f"{width}×{height} is more than {MAX_SIDE} pixels on a side")


class BoundedFile(io.BytesIO):
    """The content of an image file that can be read from so often, and no more.

    Pillow reads headers, comments and run lengths of a few bytes each in Python: 30 MB of them take minutes.
    """

    _MAX_READS = 2_000_000
    _reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes.

        Raises:
            ImageError: after too many reads.
        """
        self._reads += 1
        if self._reads > self._MAX_READS:
            raise ImageError("made of too many small pieces")
        return super().read(size)
