"""The proof: image files through Pillow and torch, against the same files through the exported model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Probabilities = NDArray[np.float32]
Decide = Callable[[list[float]], str]

# Largest difference of a probability that counts as the same answer.
TOLERANCE = 1e-4
# The same for models of fewer bits, of which every processor rounds and adds up a little otherwise.
TOLERANCES = {"float32": TOLERANCE, "float16": 1e-2, "int8": 5e-2}
# The same when the model resizes the image itself. Its pixels are Pillow's but for one grey level on under 1 % of them,
# which moves a probability further than rounding in float32 does; docs/export-parity.md has the figures.
RESIZE_TOLERANCE = 5e-2


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far two sets of answers agree.

    Attributes:
        images: number of images compared.
        max_difference: largest difference of a probability.
        mean_difference: mean difference of a probability.
        changed_decisions: images that are decided otherwise although a probability is off by more than the tolerance.
        close_calls: images that are decided otherwise while all probabilities are within it: they lay on the border.
        tolerance: largest difference that counts as the same answer.
    """

    images: int
    max_difference: float
    mean_difference: float
    changed_decisions: int
    close_calls: int
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether both sets say the same."""
        return self.max_difference <= self.tolerance and self.changed_decisions == 0

    @property
    def wanted(self) -> str:
        """What would hold, for a message."""
        return f"probabilities within {self.tolerance} and no changed decision"

    @property
    def found(self) -> str:
        """What was found, for a message."""
        return f"{self.max_difference:.2g} and {self.changed_decisions} of {self.images} decisions changed"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


def compare(expected: Probabilities, found: Probabilities, decide: Decide, tolerance: float = TOLERANCE) -> Agreement:
    """Compare probabilities (n, C) with those expected; a value that is not finite never agrees."""
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
