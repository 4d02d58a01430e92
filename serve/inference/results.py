"""What becomes of an image: an answer, or the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The answer to one image.

    Attributes:
        path: the file, or the name it was sent under.
        label: the class decided on, by the model's threshold if it has one.
        probabilities: of each class, in the model's order, adding up to 1.
        ood: distance from the training images, or ``None`` if the model does not measure it.
        ood_threshold: the distance from which an image counts as foreign, or ``None`` if the model names none.
        logits: float32 (C,), or ``None`` if the model does not give them.
        heatmap: float32 (C, h, w), 0 or more, where the network looked; ``None`` unless asked for and given.
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
        """Whether the image resembles the training images; ``None`` if the model cannot tell."""
        if self.ood is None or self.ood_threshold is None:
            return None
        return self.ood <= self.ood_threshold

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as plain JSON types, without the arrays."""
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
    """An image without an answer.

    Attributes:
        path: the file, or the name it was sent under.
        reason: why, for a person.
        by_model: the image was readable, but the model failed on it.
    """

    path: str
    reason: str
    by_model: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return path and reason as plain JSON types."""
        return {"path": self.path, "reason": self.reason}


Result = Prediction | SkippedImage


def split_results(results: list[Result]) -> tuple[list[Prediction], list[SkippedImage]]:
    """Separate the answers from the skipped images, each in the order given."""
    predictions = [result for result in results if isinstance(result, Prediction)]
    skipped = [result for result in results if isinstance(result, SkippedImage)]
    return predictions, skipped


def as_json(model: str, results: list[Result]) -> dict[str, Any]:
    """Return the object that ``xserve predict --json`` prints and ``POST /predict`` answers with."""
    predictions, skipped = split_results(results)
    return {
        "model": model,
        "predictions": [prediction.to_dict() for prediction in predictions],
        "skipped": [image.to_dict() for image in skipped],
    }
