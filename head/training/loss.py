"""What training minimises: cross entropy, optionally smoothed, focal or weighted by class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from xfeat.head.specs import TrainSpec


class TrainingLoss:
    """The mean loss of a batch for each of K heads with settings of their own.

    Args:
        specs: of the heads; their ``label_smoothing`` and ``focal_gamma`` are used.
        weights: float32 (K, C), the weight of a row of each class.

    Source:
        Focal loss: Lin et al., "Focal Loss for Dense Object Detection", 2017, equation 4, for a softmax.
    """

    def __init__(self, specs: Sequence[TrainSpec], weights: Tensor) -> None:
        self.weights = weights
        self._smoothing = weights.new_tensor([spec.label_smoothing for spec in specs]).unsqueeze(1)
        self._gamma = weights.new_tensor([spec.focal_gamma for spec in specs]).unsqueeze(1)
        # Decided once: on a GPU, each question to a tensor waits for all that is under way there.
        self._any_smoothing = any(spec.label_smoothing for spec in specs)
        self._any_focal = any(spec.focal_gamma for spec in specs)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss (K,) of logits float32 (K, B, C) for labels int64 (K, B)."""
        logs = functional.log_softmax(logits, 2)
        own = logs.gather(2, labels.unsqueeze(2)).squeeze(2)
        row_weights = self.weights.gather(1, labels)
        losses = -own * row_weights
        if self._any_smoothing:
            # torch weights the part spread over all classes by each class; with the focal factor it is the row's.
            focal = (self._gamma > 0).unsqueeze(2)
            per_class = torch.where(focal, row_weights.unsqueeze(2), self.weights.unsqueeze(1))
            losses = (1 - self._smoothing) * losses - self._smoothing * (logs * per_class).mean(2)
        if self._any_focal:
            losses = losses * (1 - own.exp()).pow(self._gamma)
        return losses.sum(1) / row_weights.sum(1)


def validation_figures(logits: Tensor, labels: Tensor, weights: Tensor | None) -> tuple[float, float]:
    """Return loss and accuracy of logits (N, C), the loss comparable between runs, whatever they minimise.

    It is the plain cross entropy, weighted by class.
    """
    loss = functional.cross_entropy(logits, labels, weights)
    return float(loss), float((logits.argmax(1) == labels).float().mean())


def balanced_weights(labels: Tensor, classes: int) -> Tensor:
    """Weight classes by the inverse of their frequency, as scikit-learn's ``balanced`` does: float32 (C,)."""
    counts = torch.bincount(labels, minlength=classes).clamp(min=1)
    return len(labels) / (classes * counts.float())
