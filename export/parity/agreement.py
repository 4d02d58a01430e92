"""Compares the predictions of the trained model with those of the exported model on the same images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Probabilities = NDArray[np.float32]
Decide = Callable[[list[float]], str]

# Largest difference of a probability that counts as equal.
TOLERANCE = 1e-4
# The same per precision: in float16 and int8, processors round and add up slightly differently.
TOLERANCES = {"float32": TOLERANCE, "float16": 1e-2, "int8": 5e-2}
# The same if the model resizes the image itself. Its pixels equal Pillow's except for one grey level on under 1 % of
# them, which changes a probability more than float32 rounding does; docs/export-parity.md has the figures.
RESIZE_TOLERANCE = 5e-2


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How closely two sets of predictions agree.

    Attributes:
        images: number of images compared.
        max_difference: largest difference of a probability.
        mean_difference: mean difference of a probability.
        changed_decisions: images with another decision and a probability that differs by more than the tolerance.
        close_calls: images with another decision although all probabilities are within the tolerance.
        tolerance: largest difference of a probability that counts as equal.
    """

    images: int
    max_difference: float
    mean_difference: float
    changed_decisions: int
    close_calls: int
    tolerance: float

    @property
    def decided_differently(self) -> int:
        """Number of images with another decision."""
        return self.changed_decisions + self.close_calls

    @property
    def holds(self) -> bool:
        """Whether all probabilities are within the tolerance and no decision has changed."""
        return self.max_difference <= self.tolerance and self.changed_decisions == 0

    @property
    def expected(self) -> str:
        """What is required, for a message."""
        return f"probabilities within {self.tolerance} and no changed decision"

    @property
    def found(self) -> str:
        """What was measured, for a message."""
        return (
            f"a difference of {self.max_difference:.2g} and {self.changed_decisions} of {self.images} decisions changed"
        )


def compare(expected: Probabilities, found: Probabilities, decide: Decide, tolerance: float = TOLERANCE) -> Agreement:
    """Compare probabilities (n, C) with the expected ones; a value that is not finite never agrees."""
    difference = np.abs(expected.astype(np.float64) - found)
    difference[~np.isfinite(difference)] = np.inf
    pairs = zip(expected.tolist(), found.tolist(), strict=True)
    changed = np.array([decide(before) != decide(after) for before, after in pairs], dtype=bool)
    within = difference.max(1) <= tolerance
    return Agreement(
        images=len(expected),
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        changed_decisions=int((changed & ~within).sum()),
        close_calls=int((changed & within).sum()),
        tolerance=tolerance,
    )
