"""The result for an image: a prediction, or the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The prediction for one image.

    Attributes:
        path: the file, or the name it was uploaded with.
        label: the predicted class; if the model has a threshold, it is applied.
        probabilities: of each class, in the model's order; they add up to 1.
        ood: out-of-distribution score, or ``None`` if the model has none.
        ood_threshold: an image with a higher score counts as out of distribution; ``None`` if the model has none.
        logits: float32 (C,), or ``None`` if the model does not return them.
        heatmap: float32 (C, h, w), 0 or more, of each class; ``None`` unless requested and available.
    """

    path: str
    label: str
    probabilities: dict[str, float]
    ood: float | None = None
    ood_threshold: float | None = None
    logits: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)
    heatmap: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)

    @property
    def in_distribution(self) -> bool | None:
        """Whether the score is within the threshold; ``None`` without a score or a threshold."""
        if self.ood is None or self.ood_threshold is None:
            return None
        return self.ood <= self.ood_threshold

    def to_dict(self) -> dict[str, Any]:
        """Return the prediction as plain JSON types, without the arrays."""
        return {
            "path": self.path,
            "label": self.label,
            "probabilities": self.probabilities,
            "ood": self.ood,
            "ood_threshold": self.ood_threshold,
            "in_distribution": self.in_distribution,
        }


@dataclass(frozen=True, kw_only=True)
class SkippedImage:
    """An image without a prediction.

    Attributes:
        path: the file, or the name it was uploaded with.
        reason: why, as a text for the user.
        by_model: the image could be read, but the model failed on it.
    """

    path: str
    reason: str
    by_model: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return path and reason as plain JSON types."""
        return {"path": self.path, "reason": self.reason}


Result = Prediction | SkippedImage


def split_results(results: list[Result]) -> tuple[list[Prediction], list[SkippedImage]]:
    """Separate predictions from skipped images; both keep their order."""
    predictions = [result for result in results if isinstance(result, Prediction)]
    skipped = [result for result in results if isinstance(result, SkippedImage)]
    return predictions, skipped


def as_json(model: str, results: list[Result]) -> dict[str, Any]:
    """Return the object that ``xserve predict --json`` prints and ``POST /predict`` returns."""
    predictions, skipped = split_results(results)
    return {
        "model": model,
        "predictions": [prediction.to_dict() for prediction in predictions],
        "skipped": [image.to_dict() for image in skipped],
    }
