"""One training step of several heads of one shape, computed by torch: forwards, loss, backwards and Adam."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from head.batched_adam import StackedAdam
from head.batched_loss import StackedLoss
from head.batched_stack import HeadStack
from head.specs import TrainSpec


class Program(ABC):
    """Heads of one shape between their first and their last step.

    Args:
        models: K untrained heads with layers of the same sizes; only their dropout may differ.

    Attributes:
        stack: the heads as they are now.
    """

    def __init__(self, models: Sequence[nn.Sequential]) -> None:
        self.stack = HeadStack(models)

    @abstractmethod
    def step(
        self,
        features: Tensor,
        labels: Tensor,
        masks: Sequence[Tensor | None],
        streams: Sequence[int],
        rates: Sequence[float],
    ) -> tuple[Tensor, Tensor]:
        """Move all heads by one batch each.

        Args:
            features: float32 (S, B, D), of S streams.
            labels: int64 (S, B).
            masks: per dropout layer float32 (S, B, width), the factors of its inputs, or ``None`` for no dropout.
            streams: which of them is whose, K numbers.
            rates: K learning rates.

        Returns:
            Mean losses float32 (K,), and how many rows were classified rightly, int64 (K,).
        """

    @abstractmethod
    def keep(self, heads: Sequence[int]) -> None:
        """Go on with some of the heads, given by their present numbers."""


class TorchProgram(Program):
    """The program in torch, which runs everywhere.

    Args:
        models: K untrained heads.
        specs: how each is trained.
        class_weights: float32 (K, C), how much a row of each class counts.
    """

    def __init__(self, models: Sequence[nn.Sequential], specs: Sequence[TrainSpec], class_weights: Tensor) -> None:
        super().__init__(models)
        self._optimizer = StackedAdam(self.stack.parameters, [spec.weight_decay for spec in specs])
        self._loss = StackedLoss(specs, class_weights)

    def step(
        self,
        features: Tensor,
        labels: Tensor,
        masks: Sequence[Tensor | None],
        streams: Sequence[int],
        rates: Sequence[float],
    ) -> tuple[Tensor, Tensor]:
        columns = torch.tensor(streams)
        own_labels = labels[columns]
        factors = [None if mask is None else _spread(mask, columns) for mask in masks]
        logits = self.stack.train_logits(_spread(features, columns), factors).requires_grad_()
        losses = self._loss(logits, own_labels)
        # The heads share no parameter: the gradient of the sum is the gradient of each.
        [upstream] = torch.autograd.grad(losses.sum(), [logits])
        self._optimizer.step(self.stack.gradients(upstream), rates)
        return losses.detach(), (logits.detach().argmax(2) == own_labels).sum(1)

    def keep(self, heads: Sequence[int]) -> None:
        self.stack.keep(heads)
        self._optimizer.keep(heads, self.stack.parameters)
        self._loss.keep(heads)


def _spread(values: Tensor, columns: Tensor) -> Tensor:
    """Give each head its stream's rows of (streams, B, …); of a single stream all have the same."""
    return values if len(values) in (1, len(columns)) else values[columns]  # as many streams as heads: in order
