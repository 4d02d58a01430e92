"""The answers of one run on one split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What one classifier says of the images of one part.

    Attributes:
        truth: path to true class.
        decided: path to most probable class.
    """

    truth: dict[str, str]
    decided: dict[str, str]

    def correct(self, paths: Sequence[str]) -> NDArray[np.bool_]:
        """Tell for each path whether the answer is right."""
        return np.array([self.decided[path] == self.truth[path] for path in paths], dtype=bool)
