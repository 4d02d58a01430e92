"""What training minimises: cross entropy, smoothed or focused, by class weights."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from xfeat.head.specs import TrainSpec


def training_loss(logits: Tensor, labels: Tensor, spec: TrainSpec, weights: Tensor | None) -> Tensor:
    """Return the mean loss of a batch.

    Args:
        logits: float32 (n, C).
        labels: int64 (n,).
        spec: its ``label_smoothing`` and ``focal_gamma``.
        weights: float32 (C,), how much a row of each class counts, or ``None`` for all alike.

    Source:
        Focal loss: Lin et al., "Focal Loss for Dense Object Detection", 2017, equation 4, for a softmax.
    """
    if not spec.focal_gamma:
        return functional.cross_entropy(logits, labels, weights, label_smoothing=spec.label_smoothing)
    losses = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=spec.label_smoothing)
    probability = functional.softmax(logits, 1).gather(1, labels[:, None]).squeeze(1)
    losses = losses * (1 - probability).pow(spec.focal_gamma)
    if weights is None:
        return losses.mean()
    row_weights = weights[labels]
    return (losses * row_weights).sum() / row_weights.sum()


def validation_loss(logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """Return the plain cross entropy by class weights: comparable between runs, whatever they minimise."""
    return functional.cross_entropy(logits, labels, weights)


def balanced_weights(labels: Tensor, classes: int) -> Tensor:
    """Weigh classes by the inverse of their frequency, as scikit-learn's ``balanced`` does: float32 (C,)."""
    counts = torch.bincount(labels, minlength=classes).clamp(min=1)
    return len(labels) / (classes * counts.float())
