"""The predicted classes of one classifier on one split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class PredictedClasses:
    """True and predicted classes of the images of one split.

    Attributes:
        truth: path to true class.
        predicted: path to most probable class.
    """

    truth: dict[str, str]
    predicted: dict[str, str]

    def correct(self, paths: Sequence[str]) -> NDArray[np.bool_]:
        """Return for each path whether the prediction is correct."""
        return np.array([self.predicted[path] == self.truth[path] for path in paths], dtype=bool)
