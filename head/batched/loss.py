"""The losses of :mod:`xfeat.head.training.loss` for a stack of heads, each with its own settings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from xfeat.head.specs import TrainSpec


class StackedLoss:
    """What each of K heads minimises.

    Args:
        specs: K specs; their ``label_smoothing`` and ``focal_gamma`` are used.
        weights: float32 (K, C), how much a row of each class counts.
    """

    def __init__(self, specs: Sequence[TrainSpec], weights: Tensor) -> None:
        self.weights = weights
        self._smoothing = weights.new_tensor([spec.label_smoothing for spec in specs]).unsqueeze(1)
        self._gamma = weights.new_tensor([spec.focal_gamma for spec in specs]).unsqueeze(1)
        self._focal = self._gamma > 0
        # Asked once: of a GPU, each answer waits for all that is under way there.
        self._smooths = any(spec.label_smoothing for spec in specs)
        self._focuses = any(spec.focal_gamma for spec in specs)

    def keep(self, heads: Sequence[int]) -> None:
        """Go on with some of the heads, given by their present numbers."""
        for name in ("weights", "_smoothing", "_gamma", "_focal"):
            setattr(self, name, getattr(self, name)[list(heads)])

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss (K,) of a batch: :func:`xfeat.head.training.loss.training_loss` of each head.

        Args:
            logits: float32 (K, B, C).
            labels: int64 (K, B).
        """
        logs = functional.log_softmax(logits, 2)
        own = logs.gather(2, labels.unsqueeze(2)).squeeze(2)
        row_weights = self.weights.gather(1, labels)
        losses = -own * row_weights
        if self._smooths:
            # torch weighs the spread part by the weight of each class; with the focal factor it is the row's.
            per_class = torch.where(self._focal.unsqueeze(2), row_weights.unsqueeze(2), self.weights.unsqueeze(1))
            spread = -(logs * per_class).mean(2)
            losses = (1 - self._smoothing) * losses + self._smoothing * spread
        if self._focuses:
            losses = losses * (1 - own.exp()).pow(self._gamma)
        return losses.sum(1) / row_weights.sum(1)
