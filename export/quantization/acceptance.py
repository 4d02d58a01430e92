"""The accuracy gate: what a candidate model loses on the validation images."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from xfeat.export.build.ood_score import fit_ood_threshold
from xfeat.export.model.interface import OOD, PROBABILITIES
from xfeat.export.model.metadata import ModelMetadata
from xfeat.export.parity.accuracy_loss import Scores, losses, measure, scores_table, within_gate
from xfeat.export.parity.agreement import Probabilities
from xfeat.export.parity.check_images import CheckImages
from xfeat.export.quantization.subgraphs import run_model

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A quantised model that is not written yet.

    Attributes:
        name: how it was quantised, for messages.
        model: with all outputs, as :func:`xfeat.export.build.assemble.write_variants` takes it.
        float_layers: convolutions that stayed in float32.
        probabilities: of the validation images, float32 (n, C).
        ood: scores of the same images, float32 (n,), if the model has that output.
        scores: accuracy, sensitivity and AUC on them.
    """

    name: str
    model: onnx.ModelProto
    float_layers: tuple[str, ...]
    probabilities: Probabilities
    ood: NDArray[np.float32] | None
    scores: Scores


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Validation images, the float32 model's results on them, and the largest loss allowed.

    Attributes:
        metadata: of the float32 model.
        images: n validation images.
        labels: their n class names.
        probabilities: of the float32 model (n, C).
        scores: of the float32 model.
        max_loss: of accuracy, sensitivity and AUC, in points.
        attempts: all candidates so far, in order.
    """

    metadata: ModelMetadata
    images: CheckImages
    labels: list[str]
    probabilities: Probabilities
    scores: Scores
    max_loss: float
    attempts: list[Candidate] = field(default_factory=list)

    def measure(self, name: str, model: onnx.ModelProto, float_layers: tuple[str, ...]) -> Candidate:
        """Measure a model on the validation images and record the attempt."""
        outputs = [PROBABILITIES, *([] if self.metadata.ood_threshold is None else [OOD])]
        probabilities, *ood = run_model(model, self.images.pixels, outputs)
        candidate = Candidate(
            name=name,
            model=model,
            float_layers=float_layers,
            probabilities=probabilities,
            ood=ood[0] if ood else None,
            scores=measure(probabilities, self.labels, self.metadata),
        )
        self.attempts.append(candidate)
        points = (f"{score} {loss:.2f}" for score, loss in losses(self.scores, candidate.scores).items())
        logger.info("%s: loss in points: %s", name, ", ".join(points))
        return candidate

    def allows(self, candidate: Candidate) -> bool:
        """Return whether no score loses more than the gate allows."""
        return within_gate(self.scores, candidate.scores, self.max_loss)

    def ood_thresholds(self, candidate: Candidate) -> dict[str, float] | None:
        """Return the ood threshold before and after, and the share of images above the old one.

        Rounding moves the scores, so the threshold is set again as in the export: 1 validation image in 20 is above it.
        """
        if self.metadata.ood_threshold is None or candidate.ood is None:
            return None
        return {
            "threshold_before": self.metadata.ood_threshold,
            "threshold_after": fit_ood_threshold(candidate.ood),
            "beyond_old_threshold": float((candidate.ood > self.metadata.ood_threshold).mean()),
        }

    def attempts_as_json(self) -> list[dict[str, Any]]:
        """Return the loss of each attempt, in plain JSON types."""
        return [
            {"float_layers": len(each.float_layers), "losses": losses(self.scores, each.scores)}
            for each in self.attempts
        ]

    def table(self) -> str:
        """Return a table of scores per attempt."""
        lines = []
        for attempt in self.attempts:
            lines += [f"{attempt.name}:", *scores_table(self.scores, attempt.scores)]
        return "\n".join(lines)
