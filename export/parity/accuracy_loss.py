"""What a model is worth on labelled images, before and after it got fewer bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xfeat.export.model.metadata import ModelMetadata
from xfeat.export.parity.agreement import Probabilities

MEASURES = ("accuracy", "sensitivity", "auc")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a model is worth on the validation images; shares from 0 to 1, ``auc`` ``None`` if a class is absent."""

    accuracy: float
    sensitivity: float
    auc: float | None


def measure(probabilities: Probabilities, labels: list[str], metadata: ModelMetadata) -> Scores:
    """Return accuracy, sensitivity and AUC of probabilities (n, C) for n names of classes.

    Sensitivity is that of the positive class at the model's threshold; without a positive class, the mean over classes.
    """
    from xfeat.head.evaluation.metrics import classification_metrics

    names = list(metadata.class_names)
    decided = np.array([metadata.decide(row) for row in probabilities.tolist()])
    true = np.array(labels)
    found = {name: float((decided[true == name] == name).mean()) for name in names if (true == name).any()}
    auc = classification_metrics(np.array([names.index(label) for label in labels]), probabilities, names)["auc"]
    return Scores(
        accuracy=float((decided == true).mean()),
        sensitivity=found[metadata.positive] if metadata.positive in found else float(np.mean(list(found.values()))),
        auc=auc,
    )


def scores_table(before: Scores, after: Scores) -> list[str]:
    """Return lines with each measure before and after, in percent, and the loss in points."""
    lines = [f"{'':12} {'float32':>8} {'after':>8} {'loss':>7}"]
    for name in MEASURES:
        old, new = getattr(before, name), getattr(after, name)
        if old is not None and new is not None:
            lines.append(f"{name:12} {old:8.2%} {new:8.2%} {(old - new) * 100:7.2f}")
    return lines


def largest_loss(before: Scores, after: Scores) -> float:
    """Return the largest loss of a measure in points."""
    return max(losses(before, after).values())


def within_gate(before: Scores, after: Scores, most: float) -> bool:
    """Whether no measure loses more than ``most`` points."""
    return largest_loss(before, after) <= most + 1e-9


def gate_in_words(most: float) -> str:
    """Return what :func:`within_gate` expects, for a message."""
    return f"a loss of at most {most:g} points in {', '.join(MEASURES)}"


def losses(before: Scores, after: Scores) -> dict[str, float]:
    """Return the loss of each measure in points; negative if it rose."""
    pairs = {name: (getattr(before, name), getattr(after, name)) for name in MEASURES}
    return {name: (old - new) * 100 for name, (old, new) in pairs.items() if old is not None and new is not None}
