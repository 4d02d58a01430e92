"""Training steps of several heads of one shape, computed by torch: forwards, loss, backwards and Adam."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from xfeat.head.batched.adam import StackedAdam
from xfeat.head.batched.dropout import draw_factors
from xfeat.head.batched.loss import StackedLoss
from xfeat.head.batched.stack import HeadStack
from xfeat.head.specs import TrainSpec


class Batches(NamedTuple):
    """Batches of one size that come one after the other: for each of S streams T of B rows.

    Attributes:
        features: float32 or float16 (n, D), what the rows are picked from.
        places: int64 (S, T, B), which of these they are.
        labels: int64 (S, T, B).
        masks: per dropout layer float32 (S, T, B, width), the factors of its inputs, or ``None`` for no dropout.
    """

    features: Tensor
    places: Tensor
    labels: Tensor
    masks: Sequence[Tensor | None]

    def on(self, device: torch.device) -> Batches:
        """Return the same on a device; of features that are elsewhere, only what these batches pick."""
        features, places = self.features, self.places
        if features.device != device:
            features = features[places.flatten()].to(device)
            places = torch.arange(places.numel()).view(places.shape)
        masks = [None if mask is None else mask.to(device) for mask in self.masks]
        return Batches(features, places.to(device), self.labels.to(device), masks)


class Program(ABC):
    """Heads of one shape between their first and their last step.

    Args:
        models: K untrained heads with layers of the same sizes; only their dropout may differ.
        device: where they are computed.

    Attributes:
        stack: the heads as they are now.
    """

    def __init__(self, models: Sequence[nn.Sequential], device: torch.device | str = "cpu") -> None:
        self.stack = HeadStack(models, device)

    @property
    def device(self) -> torch.device:
        """Where the heads are computed."""
        return next(iter(self.stack.state.values())).device

    @abstractmethod
    def train(self, batches: Batches, streams: Sequence[int], rates: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Move all heads by a step a batch.

        Args:
            batches: of S streams.
            streams: which of them is whose, K numbers.
            rates: K learning rates.

        Returns:
            Sums over the rows of their losses float32 (K,), and how many were classified rightly, int64 (K,); both
            where the heads are computed.
        """

    def draw_factors(self, out: Tensor, rate: float, generator: torch.Generator) -> None:
        """Draw factors of dropout as :func:`xfeat.head.batched.dropout.draw_factors` does."""
        draw_factors(out, rate, generator)

    @abstractmethod
    def keep(self, heads: Sequence[int]) -> None:
        """Go on with some of the heads, given by their present numbers."""


class TorchProgram(Program):
    """The program in torch, which runs everywhere.

    Args:
        models: K untrained heads.
        specs: how each is trained.
        class_weights: float32 (K, C), how much a row of each class counts.
        device: where they are computed.
    """

    def __init__(
        self,
        models: Sequence[nn.Sequential],
        specs: Sequence[TrainSpec],
        class_weights: Tensor,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(models, device)
        self._optimizer = StackedAdam(self.stack.parameters, [spec.weight_decay for spec in specs])
        self._loss = StackedLoss(specs, class_weights.to(device))

    def train(self, batches: Batches, streams: Sequence[int], rates: Sequence[float]) -> tuple[Tensor, Tensor]:
        batches = batches.on(self.device)
        columns = torch.tensor(streams, device=self.device)
        loss_sum = torch.zeros(len(streams), device=self.device)
        hits = torch.zeros(len(streams), dtype=torch.int64, device=self.device)
        for step in range(batches.places.shape[1]):
            features = _spread(batches.features[batches.places[:, step]].float(), columns)
            masks = [None if mask is None else _spread(mask[:, step], columns) for mask in batches.masks]
            labels = batches.labels[columns, step]
            logits = self.stack.train_logits(features, masks).requires_grad_()
            losses = self._loss(logits, labels)
            # The heads share no parameter: the gradient of the sum is the gradient of each.
            [upstream] = torch.autograd.grad(losses.sum(), [logits])
            self._optimizer.step(self.stack.gradients(upstream), rates)
            loss_sum += losses.detach() * labels.shape[1]
            hits += (logits.detach().argmax(2) == labels).sum(1)
        return loss_sum, hits

    def keep(self, heads: Sequence[int]) -> None:
        self.stack.keep(heads)
        self._optimizer.keep(heads, self.stack.parameters)
        self._loss.keep(heads)


def _spread(values: Tensor, columns: Tensor) -> Tensor:
    """Give each head its stream's rows of (streams, B, …); of a single stream all have the same."""
    return values if len(values) in (1, len(columns)) else values[columns]  # as many streams as heads: in order
