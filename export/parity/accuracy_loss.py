"""Accuracy, sensitivity and AUC of a model, and the loss between two models: the accuracy gate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xfeat.export.model.metadata import ModelMetadata
from xfeat.export.parity.agreement import Probabilities

SCORES = ("accuracy", "sensitivity", "auc")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of a model on the validation images, from 0 to 1; ``auc`` is ``None`` if a class is absent."""

    accuracy: float
    sensitivity: float
    auc: float | None


def measure(probabilities: Probabilities, labels: list[str], metadata: ModelMetadata) -> Scores:
    """Return accuracy, sensitivity and AUC of probabilities (n, C) for n class names.

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
    """Return the lines of a table: each score before and after, in percent, and the loss in percentage points."""
    lines = [f"{'':12} {'float32':>8} {'after':>8} {'loss':>7}"]
    for name, loss in losses(before, after).items():
        lines.append(f"{name:12} {getattr(before, name):8.2%} {getattr(after, name):8.2%} {loss:7.2f}")
    return lines


def within_gate(before: Scores, after: Scores, max_loss: float) -> bool:
    """Return whether no score loses more than ``max_loss`` percentage points."""
    return max(losses(before, after).values()) <= max_loss + 1e-9


def acceptable(before: Scores, after: Scores, max_loss: float, decided_differently: int) -> bool:
    """Return whether the loss is within the gate, or due to a single image while AUC is within the gate.

    A single image is the smallest loss of accuracy that can be measured, and can be more than the gate: 1 point of 100
    images.

    Args:
        before: scores of the reference.
        after: scores of the model to judge.
        max_loss: the gate in percentage points.
        decided_differently: number of images that the two models decide differently.
    """
    if within_gate(before, after, max_loss):
        return True
    return decided_differently <= 1 and losses(before, after).get("auc", 0.0) <= max_loss + 1e-9


def gate_in_words(max_loss: float) -> str:
    """Return the condition of :func:`acceptable`, for a message."""
    return f"a loss of at most {max_loss:g} points in {', '.join(SCORES)}, or one changed decision"


def losses(before: Scores, after: Scores) -> dict[str, float]:
    """Return the loss of each score in percentage points; negative for a gain."""
    pairs = {name: (getattr(before, name), getattr(after, name)) for name in SCORES}
    return {name: (old - new) * 100 for name, (old, new) in pairs.items() if old is not None and new is not None}
