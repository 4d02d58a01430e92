"""How far an accuracy measured on few images can be off. Serving installs neither scipy nor scikit-learn for it."""

from __future__ import annotations

import math

_Z = 1.959963984540054  # 97.5 % quantile of the normal distribution


def wilson_interval(right: int, images: int) -> tuple[float, float]:
    """Return the 95 % interval of a proportion.

    Args:
        right: images answered rightly.
        images: all images, 1 or more.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference", JASA 22.
    """
    share = right / images
    middle = share + _Z**2 / (2 * images)
    reach = _Z * math.sqrt(share * (1 - share) / images + _Z**2 / (4 * images**2))
    whole = 1 + _Z**2 / images
    return max(0.0, (middle - reach) / whole), min(1.0, (middle + reach) / whole)
