"""The range of images with 16 bits per channel that do not state their white."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from typing import NamedTuple, Self

from xfeat.featurize.errors import ImageError
from xfeat.featurize.images.decode import read_levels
from xfeat.featurize.images.file_kinds import HEAD_BYTES, may_be_deep
from xfeat.featurize.images.levels import DeepLevels
from xfeat.featurize.specs import PreprocessSpec

logger = logging.getLogger(__name__)

# Detectors and formats have these numbers of bits.
_USUAL_BITS = (8, 10, 12, 14, 16)
_WATCHED = 20


class GreyRange(NamedTuple):
    """The levels of images with 16 bits per channel that do not state their white.

    Attributes:
        highest: of all levels that the network is given.
        stated_bits: the most that a file states as used; 0 if none does.
        all_state: every file states its bits.
    """

    highest: int
    stated_bits: int
    all_state: bool

    @property
    def bits(self) -> int:
        """The usual number of bits that holds all levels."""
        needed = max(self.highest.bit_length(), self.stated_bits)
        return next((bits for bits in _USUAL_BITS if bits >= needed), 16) if self.highest else 16

    def fits(self, bits: int) -> bool:
        """Tell whether the levels need the bits of a range, or fewer. 16 may be the default, so fewer do not fit it."""
        return self.bits == bits or self.bits < bits < 16

    @classmethod
    def of(cls, content: bytes, spec: PreprocessSpec) -> Self | None:
        """Return the range of one image file; ``None`` if it states its own, has 8 bits, or cannot be decoded."""
        try:
            levels = read_levels(content, spec) if may_be_deep(content[:HEAD_BYTES]) else None
        except ImageError:  # reported where the image itself is decoded
            return None
        return cls.of_levels(levels, spec)

    @classmethod
    def of_levels(cls, levels: DeepLevels | None, spec: PreprocessSpec) -> Self | None:
        """Return the range of one image's levels; ``None`` if its file states its own, or there are none."""
        if levels is None or levels.own_bits is not None:
            return None
        return cls(levels.highest(spec), levels.used_bits, levels.used_bits > 0)

    @classmethod
    def of_all(cls, ranges: Iterable[Self | None]) -> Self | None:
        """Return the range of several images; ``None`` if none of them has one."""
        found = [one for one in ranges if one is not None]
        if not found:
            return None
        highest, stated, all_state = zip(*found, strict=True)
        return cls(max(highest), max(stated), all(all_state))


class RangeWatch:
    """Warns once if the first 16-bit images that a server is sent have another range than its model reads.

    Levels over the range are white, whatever comes later; levels below it may be those of a dark image, so that several
    images are waited for.
    """

    def __init__(self, spec: PreprocessSpec) -> None:
        self._spec = spec
        self._ranges: list[GreyRange] = []
        self._done = False
        self._lock = threading.Lock()  # images are decoded in several threads

    def look_at(self, content: bytes) -> None:
        """Look at the content of an image file."""
        if self._done or (one := GreyRange.of(content, self._spec)) is None:
            return
        with self._lock:
            if self._done:
                return
            self._ranges.append(one)
            self._done = len(self._ranges) >= _WATCHED or one.bits > self._spec.grey_bits
            if self._done:
                warn_if_other(GreyRange.of_all(self._ranges), self._spec)


def warn_if_other(found: GreyRange | None, spec: PreprocessSpec) -> None:
    """Warn if 16-bit images have another range than a model reads them in."""
    if found is not None and not found.fits(spec.grey_bits):
        logger.warning(
            "16-bit images hold levels up to %d, which need %d bits; the model was trained on %d-bit levels and reads "
            "them as such",
            found.highest,
            found.bits,
            spec.grey_bits,
        )
