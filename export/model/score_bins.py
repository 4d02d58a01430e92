"""How the scores of the validation images are distributed, as counts in bins: what later images are compared with."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from xfeat.featurize.specs import Spec, require

PROBABILITY, OOD_SCORE = "probability", "ood"
# As for the index that is computed from them: deciles. Fewer images get fewer bins, so that no bin is left to chance.
_MOST_BINS, _IMAGES_PER_BIN = 10, 10
# Engines differ by less. Many probabilities are almost 0 or 1: without rounding, noise would decide on their bins.
_DECIMALS = 6


@dataclass(frozen=True, kw_only=True)
class ScoreBins(Spec):
    """Counts of scores between edges.

    Attributes:
        edges: ascending; bin i has the scores above edge i - 1 and up to edge i, rounded to 6 decimals.
        counts: images per bin, one more than there are edges.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        ascending = all(low < high for low, high in zip(self.edges, self.edges[1:], strict=False))
        require(ascending and len(self.edges) > 0, "edges of bins", expected="ascending numbers", found=self.edges)
        right = len(self.counts) == len(self.edges) + 1 and min(self.counts) >= 0 < sum(self.counts)
        require(right, "counts of bins", expected="one more than edges", found=self.counts)

    @classmethod
    def of(cls, scores: ArrayLike) -> Self | None:
        """Return bins with about as many scores each; ``None`` for fewer than 20 scores, or equal ones.

        Args:
            scores: of the validation images, (n,).
        """
        rounded = np.round(np.asarray(scores, np.float64), _DECIMALS)
        rounded = rounded[np.isfinite(rounded)]
        bins = min(_MOST_BINS, len(rounded) // _IMAGES_PER_BIN)
        if bins < 2:
            return None
        # Scores themselves, so that equal ones are not divided.
        quantiles = np.quantile(rounded, np.arange(1, bins) / bins, method="inverted_cdf")
        edges = np.unique(quantiles[quantiles < rounded.max()])
        if not len(edges):
            return None
        counts = np.bincount(np.searchsorted(edges, rounded), minlength=len(edges) + 1)
        return cls(edges=tuple(edges.tolist()), counts=tuple(counts.tolist()))

    def bin_of(self, score: float) -> int:
        """Return the number of the bin of a score."""
        return bisect_left(self.edges, round(score, _DECIMALS))


def validation_bins(
    probabilities: ArrayLike | None, class_names: Sequence[str], positive: str | None, ood: ArrayLike | None
) -> dict[str, ScoreBins]:
    """Return the bins of the scores of the validation images, for the metadata of a model.

    Args:
        probabilities: (n, C).
        class_names: of the columns.
        positive: the class whose probability is watched; ``None``: that of the most probable class.
        ood: out-of-distribution scores, (n,).

    Returns:
        ``probability`` and ``ood``; what is missing, has few scores or equal ones has no bins.
    """
    rows = np.asarray([] if probabilities is None else probabilities).reshape(-1, len(class_names))
    watched = rows.max(axis=1, initial=0) if positive is None else rows[:, class_names.index(positive)]
    found = {PROBABILITY: ScoreBins.of(watched), OOD_SCORE: ScoreBins.of([] if ood is None else ood)}
    return {name: bins for name, bins in found.items() if bins is not None}
