"""The gate of a model in fewer bits: what it loses on validation images."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from xfeat.export.build.ood_score import fit_ood_threshold
from xfeat.export.model.metadata import ModelMetadata
from xfeat.export.model.outputs import OOD, PROBABILITIES
from xfeat.export.parity.accuracy_loss import Scores, largest_loss, losses, measure, within_gate
from xfeat.export.parity.agreement import Probabilities
from xfeat.export.parity.check_images import CheckImages
from xfeat.export.quantization.onnx_graph import run_model

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model in fewer bits, not written yet.

    Attributes:
        model: with all outputs, as :func:`xfeat.export.build.assemble.finish` takes it.
        float_layers: convolutions that stayed in float32.
        head_bits: of each number of the head's first matrix, if it can have 4.
        answers: its probabilities, float32 (n, C), of the validation images.
        distances: what it gives as ``ood``, float32 (n,), if it does.
        worth: what it is worth on them.
    """

    model: onnx.ModelProto
    float_layers: tuple[str, ...]
    head_bits: int | None
    answers: Probabilities
    distances: NDArray[np.float32] | None
    worth: Scores


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What is kept of a candidate: how many layers stayed in float32, the head's bits, what it was worth."""

    float_layers: int
    head_bits: int | None
    worth: Scores


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Validation images, what float32 says of them, and how much may be lost.

    Attributes:
        metadata: of the float32 model.
        images: n of the validation.
        labels: their n names of classes.
        answers: float32's probabilities (n, C).
        worth: what float32 is worth on them.
        most: largest loss of a measure, in points.
        attempts: all candidates so far, in order.
    """

    metadata: ModelMetadata
    images: CheckImages
    labels: list[str]
    answers: Probabilities
    worth: Scores
    most: float
    attempts: list[Attempt] = field(default_factory=list)

    def look_at(
        self, model: onnx.ModelProto, float_layers: tuple[str, ...] = (), head_bits: int | None = None
    ) -> Candidate:
        """Measure a model and note what it is worth."""
        names = [PROBABILITIES, *([] if self.metadata.ood_threshold is None else [OOD])]
        answers, *distances = run_model(model, self.images.pixels, names)
        worth = measure(answers, self.labels, self.metadata)
        self.attempts.append(Attempt(float_layers=len(float_layers), head_bits=head_bits, worth=worth))
        logger.info("%s: loses %s", describe(self.attempts[-1]), _points(losses(self.worth, worth)))
        return Candidate(
            model=model,
            float_layers=float_layers,
            head_bits=head_bits,
            answers=answers,
            distances=distances[0] if distances else None,
            worth=worth,
        )

    def allows(self, candidate: Candidate) -> bool:
        """Whether no measure loses more than the gate."""
        return within_gate(self.worth, candidate.worth, self.most)

    @property
    def best(self) -> Attempt:
        """The attempt that lost least."""
        return min(self.attempts, key=lambda attempt: largest_loss(self.worth, attempt.worth))

    def familiar(self, candidate: Candidate) -> dict[str, float] | None:
        """Return the threshold of the distance before and after, and the share beyond the old one that calls for it.

        Rounding moves the distances, so the threshold is set again as the export set it: 1 image in 20 lies beyond.
        """
        old, distances = self.metadata.ood_threshold, candidate.distances
        if old is None or distances is None:
            return None
        return {
            "threshold_before": old,
            "threshold_after": fit_ood_threshold(distances),
            "beyond_old_threshold": float((distances > old).mean()),
        }

    def attempts_as_json(self) -> list[dict[str, Any]]:
        """Return what each attempt lost, in plain JSON types."""
        return [
            {
                "float_layers": attempt.float_layers,
                "head_bits": attempt.head_bits,
                "losses": losses(self.worth, attempt.worth),
            }
            for attempt in self.attempts
        ]


def describe(attempt: Attempt) -> str:
    """Return an attempt in words."""
    head = f", the head's first matrix in {attempt.head_bits} bits" if attempt.head_bits else ""
    return f"{attempt.float_layers} layers in float32{head}"


def _points(lost: dict[str, float]) -> str:
    return ", ".join(f"{name} {points:.2f}" for name, points in lost.items()) + " points"
