"""A candidate model on the validation images: its scores, and its out-of-distribution threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from xfeat.export.build.ood_score import fit_ood_threshold
from xfeat.export.model.interface import OOD, PROBABILITIES
from xfeat.export.model.metadata import ModelMetadata
from xfeat.export.parity.accuracy_loss import Scores, measure, scores_table
from xfeat.export.parity.agreement import Probabilities
from xfeat.export.quantization.subgraphs import run_model
from xfeat.featurize.images.preprocess import Pixels


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model that is not written yet, and its results on the validation images.

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


def measure_model(
    name: str,
    model: onnx.ModelProto,
    float_layers: tuple[str, ...],
    *,
    pixels: Pixels,
    labels: list[str],
    metadata: ModelMetadata,
) -> Candidate:
    """Measure a model on validation images uint8 (n, S, S, 3) of n class names."""
    outputs = [PROBABILITIES, *([] if metadata.ood_threshold is None else [OOD])]
    probabilities, *ood = run_model(model, pixels, outputs)
    return Candidate(
        name=name,
        model=model,
        float_layers=float_layers,
        probabilities=probabilities,
        ood=ood[0] if ood else None,
        scores=measure(probabilities, labels, metadata),
    )


def ood_thresholds(candidate: Candidate, before: float | None) -> dict[str, float] | None:
    """Return the ood threshold before and after, and the share of images above the old one.

    Rounding moves the scores, so the threshold is set again as in the export: 1 validation image in 20 is above it.
    """
    if before is None or candidate.ood is None:
        return None
    return {
        "threshold_before": before,
        "threshold_after": fit_ood_threshold(candidate.ood),
        "beyond_old_threshold": float((candidate.ood > before).mean()),
    }


def attempts_table(attempts: Sequence[Candidate], before: Scores) -> str:
    """Return a table of scores per attempt."""
    return "\n".join(line for each in attempts for line in [f"{each.name}:", *scores_table(before, each.scores)])
