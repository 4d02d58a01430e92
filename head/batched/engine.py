"""What trains several heads of one shape at once: their stacked weights, and the interface of the two engines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from xfeat.head.data.counter_rng import FEATURES

State = dict[str, Tensor]
"""Name of a weight or statistic, as in a head's ``state_dict``, to the values of all heads (K, …)."""

# Rows that are evaluated at once: each head has its own activations of them.
_ROWS_AT_ONCE = 256


class Batches(NamedTuple):
    """Batches of one size, one after the other: T batches of B rows for each of S streams.

    Heads of one stream have the same seed, so they see the same rows in the same order.

    Attributes:
        features: float32 or float16 (n, D), from which rows are taken.
        rows: int64 (S, T, B), numbers of rows of ``features``.
        labels: int64 (S, T, B).
        seeds: of the streams, S in all.
        first_step: number of the first of these T steps since training began, from 0.
    """

    features: Tensor
    rows: Tensor
    labels: Tensor
    seeds: Sequence[int]
    first_step: int


class Engine(ABC):
    """K heads of one shape between their first and their last step.

    Args:
        models: untrained heads with layers of the same sizes; only their dropout may differ. Their own weights are
            not changed.
        device: where they are computed.

    Attributes:
        models: as given.
        state: the weights and statistics of all heads, stacked.
    """

    def __init__(self, models: Sequence[nn.Sequential], device: torch.device | str = "cpu") -> None:
        self.models = list(models)
        self.modules = list(models[0])
        states = [model.state_dict() for model in models]
        self.state: State = {name: torch.stack([state[name] for state in states]).to(device) for name in states[0]}

    @property
    def device(self) -> torch.device:
        """Where the heads are computed."""
        return next(iter(self.state.values())).device

    @abstractmethod
    def train(self, batches: Batches, streams: Sequence[int], rates: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Train all heads for one step per batch.

        Args:
            batches: of S streams.
            streams: the stream of each head, K numbers, ascending.
            rates: K learning rates.

        Returns:
            Sums over the rows of the losses, float32 (K,), and how many rows were classified correctly, int64 (K,);
            both on the engine's device.
        """

    @abstractmethod
    def keep(self, heads: Sequence[int]) -> None:
        """Drop all but some of the heads, given by their present numbers."""

    def dropout_rates(self, layer: int) -> list[float]:
        """Return the rate of dropout layer ``LAST_LAYER`` or ``FEATURES`` for each head; 0 if it has no such layer."""
        modules = [model[0 if layer == FEATURES else -2] for model in self.models]
        return [float(module.p) if isinstance(module, nn.Dropout) else 0.0 for module in modules]

    @torch.no_grad()
    def logits(self, features: Tensor, state: State | None = None) -> Tensor:
        """Return logits (K, N, C) of the same features (N, D) for all heads, in evaluation mode.

        Args:
            features: float32.
            state: instead of the present weights, such as an average of them.
        """
        blocks = torch.split(features, _ROWS_AT_ONCE)
        return torch.cat([stacked_logits(self.modules, state or self.state, block.unsqueeze(0)) for block in blocks], 1)


def stacked_logits(
    modules: Sequence[nn.Module], state: State, values: Tensor, factors: Sequence[Tensor | None] | None = None
) -> Tensor:
    """Return logits (K, B, C) of K heads: the forward pass of each, as one program.

    Args:
        modules: layers of the heads, as :func:`xfeat.head.training.network.build_head` made them.
        state: their weights and statistics; in training mode the statistics follow those of the batch.
        values: float32 (K, B, D), the rows of each head, or (1, B, D), the same for all.
        factors: of each dropout layer (K, B, width), or ``None`` where nothing is dropped; in training mode only.
    """
    remaining = iter(factors or ())
    for index, module in enumerate(modules):
        own = {name.partition(".")[2]: each for name, each in state.items() if name.startswith(f"{index}.")}
        if isinstance(module, nn.BatchNorm1d):
            values = _normalize(module, own, values, training=factors is not None)
        elif isinstance(module, nn.Linear):
            # Weights times transposed rows is the faster order for few rows: docs/decisions/0040.
            rows = values.expand(len(own["weight"]), -1, -1).transpose(1, 2)
            values = torch.baddbmm(own["bias"].unsqueeze(2), own["weight"], rows).transpose(1, 2)
        elif isinstance(module, nn.ReLU):
            values = values.relu()
        elif factors is not None and (factor := next(remaining)) is not None:
            values = values * factor
    return values


def _normalize(module: nn.BatchNorm1d, own: State, values: Tensor, *, training: bool) -> Tensor:
    """Apply batch normalisation to (S, B, W); S may be 1 where all heads have the same rows."""
    if not training:
        factor = own["weight"] * (own["running_var"] + module.eps).rsqrt()
        shift = own["bias"] - own["running_mean"] * factor
        return torch.addcmul(shift.unsqueeze(1), values, factor.unsqueeze(1))
    streams, count, width = values.shape
    mean, variance = own["running_mean"], own["running_var"]
    normalized = functional.batch_norm(
        values.transpose(0, 1).reshape(count, streams * width),
        mean[:streams].view(-1),
        variance[:streams].view(-1),
        training=True,
        momentum=module.momentum or 0.0,
        eps=module.eps,
    )
    if streams < len(mean):  # all heads have seen the same rows since their first step
        mean[1:], variance[1:] = mean[0], variance[0]
    own["num_batches_tracked"] += 1
    normalized = normalized.view(count, streams, width).transpose(0, 1)
    return torch.addcmul(own["bias"].unsqueeze(1), normalized, own["weight"].unsqueeze(1))
