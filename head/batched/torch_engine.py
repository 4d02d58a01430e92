"""Several heads as stacked tensors under autograd: the engine of a GPU, and of a CPU where numba is not installed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from xfeat.head.batched.engine import Batches, Engine, stacked_logits
from xfeat.head.data.counter_rng import DROPOUT, FEATURES, LAST_LAYER, keep_below, key_of, random_bits
from xfeat.head.specs import TrainSpec
from xfeat.head.training.adam import BETA1, BETA2, EPS
from xfeat.head.training.loss import TrainingLoss


class TorchEngine(Engine):
    """Trains K heads in torch.

    Args:
        models: untrained heads.
        specs: how each is trained.
        class_weights: float32 (K, C), the weight of a row of each class.
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
        self._trained = [name for name, _ in models[0].named_parameters()]
        self._loss = TrainingLoss(specs, class_weights.to(device))
        self._optimizer = _StackedAdam(self._parameters(), [spec.weight_decay for spec in specs])

    def train(self, batches: Batches, streams: Sequence[int], rates: Sequence[float]) -> tuple[Tensor, Tensor]:
        features, rows, labels = self._on_device(batches)
        column = torch.tensor(streams, device=self.device)
        loss_sum = torch.zeros(len(streams), device=self.device)
        correct = torch.zeros(len(streams), dtype=torch.int64, device=self.device)
        parameters, dropouts = self._parameters(), self._dropouts(batches, column)
        for step in range(rows.shape[1]):
            values = features[rows[:, step]].float()
            if len(batches.seeds) > 1:
                values = values[column]
            factors = [None if each is None else each.factors(batches.first_step + step) for each in dropouts]
            own_labels = labels[column, step]
            logits = stacked_logits(self.modules, self.state, values, factors)
            losses = self._loss(logits, own_labels)
            # The heads share no parameter: the gradient of the sum holds the gradient of each.
            self._optimizer.step(parameters, torch.autograd.grad(losses.sum(), parameters), rates)
            loss_sum += losses.detach() * own_labels.shape[1]
            correct += (logits.detach().argmax(2) == own_labels).sum(1)
        return loss_sum, correct

    def keep(self, heads: Sequence[int]) -> None:
        kept = list(heads)
        self.models = [self.models[head] for head in kept]
        self.state = {name: values.detach()[kept] for name, values in self.state.items()}
        self._loss.keep(kept)
        self._optimizer.keep(kept)

    def _parameters(self) -> list[Tensor]:
        return [self.state[name].requires_grad_() for name in self._trained]

    def _on_device(self, batches: Batches) -> tuple[Tensor, Tensor, Tensor]:
        """Return features, rows and labels on the device; of features that are elsewhere, only the rows needed."""
        features, rows = batches.features, batches.rows
        if features.device != self.device:
            features = features[rows.flatten()].to(self.device)
            rows = torch.arange(rows.numel()).view(rows.shape)
        return features, rows.to(self.device), batches.labels.to(self.device)

    def _dropouts(self, batches: Batches, column: Tensor) -> list[_Dropout | None]:
        """Return the dropout layers in the order of the modules; ``None`` for one that drops nothing of any head."""
        lines = [module for module in self.modules if isinstance(module, nn.Linear)]
        widths = {LAST_LAYER: lines[-1].in_features}
        if isinstance(self.modules[0], nn.Dropout):
            widths = {FEATURES: lines[0].in_features, **widths}
        rates = {layer: self.dropout_rates(layer) for layer in widths}
        return [
            _Dropout(layer, rates[layer], batches, column, width) if any(rates[layer]) else None
            for layer, width in widths.items()
        ]


class _Dropout:
    """One dropout layer of K heads: what of its factors is the same in each of several steps, made once."""

    def __init__(self, layer: int, rates: Sequence[float], batches: Batches, column: Tensor, width: int) -> None:
        device, rows = column.device, batches.rows.shape[2]
        self._layer, self._column, self._shape = layer, column, (-1, rows, width)
        self._seeds = torch.tensor(batches.seeds, device=device).unsqueeze(1)
        self._index = torch.arange(rows * width, device=device)
        self._below = torch.tensor([keep_below(rate) for rate in rates], device=device).view(-1, 1, 1)
        self._scale = torch.tensor([1 / (1 - rate) for rate in rates], device=device).view(-1, 1, 1)

    def factors(self, step: int) -> Tensor:
        """Return float32 (K, B, width): what :func:`~xfeat.head.data.counter_rng.dropout_factors` gives each head."""
        bits: Tensor = random_bits(key_of(self._seeds, DROPOUT, step, self._layer), self._index)
        return (bits.view(self._shape)[self._column] < self._below) * self._scale


class _StackedAdam:
    """Adam over stacked parameters (K, …); each head has a learning rate and a weight decay of its own.

    Neighbours with the same ones are updated by one fused call.
    """

    def __init__(self, parameters: Sequence[Tensor], weight_decays: Sequence[float]) -> None:
        self._decays = list(weight_decays)
        self._means = [torch.zeros_like(values.detach()) for values in parameters]
        self._squares = [torch.zeros_like(values.detach()) for values in parameters]
        self._count = torch.zeros((), device=parameters[0].device)

    @torch.no_grad()
    def step(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], rates: Sequence[float]) -> None:
        self._count += 1
        settings = list(zip(rates, self._decays, strict=True))
        for (rate, decay), run in groupby(range(len(settings)), key=settings.__getitem__):
            heads = list(run)
            some = slice(heads[0], heads[-1] + 1)
            torch._fused_adam_(
                [values[some] for values in parameters],
                [values[some] for values in gradients],
                [values[some] for values in self._means],
                [values[some] for values in self._squares],
                [],
                [self._count] * len(parameters),
                lr=rate,
                beta1=BETA1,
                beta2=BETA2,
                weight_decay=decay,
                eps=EPS,
                amsgrad=False,
                maximize=False,
            )

    def keep(self, heads: Sequence[int]) -> None:
        kept = list(heads)
        self._decays = [self._decays[head] for head in kept]
        self._means = [values[kept] for values in self._means]
        self._squares = [values[kept] for values in self._squares]
