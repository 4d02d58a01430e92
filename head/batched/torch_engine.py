"""Several heads as stacked tensors under autograd: the engine of a GPU, and of a CPU where numba is not installed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from xfeat.head.batched.engine import Engine, Job, State
from xfeat.head.data.counter_rng import DROPOUT, FEATURES, LAST_LAYER, Key, key_of, random_bits
from xfeat.head.data.rows import EqualBatches
from xfeat.head.training.adam import StackedAdam
from xfeat.head.training.loss import TrainingLoss


class TorchEngine(Engine):
    """Trains K heads in torch."""

    def __init__(
        self, jobs: Sequence[Job], dim: int, class_weights: Tensor, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(jobs, dim, class_weights, device)
        self._loss = TrainingLoss(self.specs, self.class_weights)
        self._adam = StackedAdam(self._parameters(), [spec.weight_decay for spec in self.specs])

    def train(
        self, batches: EqualBatches, seeds: Sequence[int], streams: Sequence[int], rates: Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        stream = torch.tensor(streams, device=self.device)
        column = torch.tensor(seeds, device=self.device).unsqueeze(1)
        loss_sum = torch.zeros(len(streams), device=self.device)
        correct = torch.zeros(len(streams), dtype=torch.int64, device=self.device)
        parameters = self._parameters()
        for step in range(batches.places.shape[1]):
            keys = [key_of(column, DROPOUT, self.steps, layer) for layer in (LAST_LAYER, FEATURES)]
            values, labels = batches.features[batches.places[:, step]].float(), batches.labels[stream, step]
            logits = self._logits(values[stream], stream, keys)
            losses = self._loss(logits, labels)
            # The heads share no parameter: the gradient of the sum holds the gradient of each.
            self._adam.step(parameters, torch.autograd.grad(losses.sum(), parameters), rates)
            loss_sum += losses.detach() * labels.shape[1]
            correct += (logits.detach().argmax(2) == labels).sum(1)
            self.steps += 1
        return loss_sum, correct

    def keep(self, heads: Sequence[int]) -> None:
        super().keep(heads)
        self._loss = TrainingLoss(self.specs, self.class_weights)
        self._adam.keep(heads)

    def _parameters(self) -> list[Tensor]:
        return [self.state[name].requires_grad_() for name, _ in self.models[0].named_parameters()]

    def _logits(self, values: Tensor, stream: Tensor, keys: Sequence[Key]) -> Tensor:
        """Return logits (K, B, C) of rows (K, B, D) in training mode; the keys (S, 1) are those of both dropouts."""
        for index, module in enumerate(self.models[0]):
            own = {name: self.state[f"{index}.{name}"] for name in module.state_dict()}
            if isinstance(module, nn.BatchNorm1d):
                values = _normalize(module, values, own)
            elif isinstance(module, nn.Linear):
                # Weights times transposed rows is the faster order for few rows: docs/decisions/0040.
                values = torch.baddbmm(own["bias"].unsqueeze(2), own["weight"], values.mT).mT
            elif isinstance(module, nn.ReLU):
                values = values.relu()
            elif any(model[index].p for model in self.models):
                layer = FEATURES if index == 0 else LAST_LAYER
                bits: Tensor = random_bits(keys[layer], torch.arange(values[0].numel(), device=self.device))
                below, scale = (each[:, layer].view(-1, 1, 1) for each in (self.keep_below, self.scales))
                values = values * ((bits.view(-1, *values.shape[1:])[stream] < below) * scale)
        return values


def _normalize(module: nn.BatchNorm1d, values: Tensor, own: State) -> Tensor:
    """Normalise (K, B, W) over the batch, as one layer of K · W features; the running statistics follow."""
    heads, count, width = values.shape
    mean, variance, weight, bias = (own[name].view(-1) for name in ("running_mean", "running_var", "weight", "bias"))
    own["num_batches_tracked"] += 1
    normalized = functional.batch_norm(
        values.transpose(0, 1).reshape(count, heads * width),
        mean,
        variance,
        weight,
        bias,
        training=True,
        momentum=module.momentum or 0.0,
        eps=module.eps,
    )
    return normalized.view(count, heads, width).transpose(0, 1)
