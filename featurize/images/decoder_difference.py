"""How far another decoder is from Pillow, as a cache keeps it."""

from __future__ import annotations

from dataclasses import dataclass

from xfeat.featurize.specs import Spec


@dataclass(frozen=True, kw_only=True)
class DecoderDifference(Spec):
    """How far another decoder's results are from Pillow's, on some files of the data set.

    Attributes:
        decoder: such as ``nvjpeg``.
        device: what it ran on.
        files: JPEG files that were compared; 0 if none could be, and then all differences are 0.
        largest_grey_levels: of any pixel, after resizing.
        mean_grey_levels: of all pixels.
        largest_feature: of an image: norm of the difference over the norm of the features.
        mean_feature: of all images.
    """

    decoder: str
    device: str
    files: int
    largest_grey_levels: int
    mean_grey_levels: float
    largest_feature: float
    mean_feature: float

    def describe(self) -> str:
        """Return one line for people."""
        if not self.files:
            return f"no JPEG file could be decoded by {self.decoder} and by Pillow, to compare them"
        return (
            f"{self.files} JPEG files by {self.decoder} ({self.device}) and by Pillow: pixels differ by at most "
            f"{self.largest_grey_levels} grey levels after resizing (mean {self.mean_grey_levels:.3f}), features by at "
            f"most {self.largest_feature:.2%} (mean {self.mean_feature:.2%})"
        )
