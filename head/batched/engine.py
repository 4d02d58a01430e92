"""What trains several heads of one shape at once: their stacked weights, and the interface of the two engines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from xfeat.head.data.counter_rng import keep_below
from xfeat.head.data.rows import EqualBatches
from xfeat.head.specs import HeadSpec, TrainSpec
from xfeat.head.training.network import build_head

Job = tuple[HeadSpec, TrainSpec]
State = dict[str, Tensor]
"""Name of a weight or statistic, as in a head's ``state_dict``, to the values of all heads (K, …)."""


class Engine(ABC):
    """K heads of one shape between their first and their last step.

    Args:
        jobs: layers and optimisation of each; only dropout may differ between the layers.
        dim: number of features D.
        class_weights: float32 (K, C), the weight of a row of each class.
        device: where they are computed.

    Attributes:
        models: the untrained heads, in evaluation mode; their own weights are not changed.
        state: the weights and statistics of all heads, stacked.
        steps: number of steps since training began.
        keep_below: int64 (K, 2), the bounds of random bits for dropout: before the last layer, and of the features.
        scales: float32 (K, 2), the factors of values that are kept.
    """

    def __init__(
        self, jobs: Sequence[Job], dim: int, class_weights: Tensor, device: torch.device | str = "cpu"
    ) -> None:
        classes = class_weights.shape[1]
        self.steps = 0
        self.specs = [spec for _, spec in jobs]
        self.models = [build_head(head, dim=dim, classes=classes, seed=spec.seed).eval() for head, spec in jobs]
        self.class_weights = class_weights.to(device)
        states = [model.state_dict() for model in self.models]
        self.state: State = {name: torch.stack([state[name] for state in states]).to(device) for name in states[0]}
        rates = [(head.dropout, head.feature_dropout) for head, _ in jobs]
        self.keep_below = torch.tensor([[keep_below(rate) for rate in pair] for pair in rates], device=device)
        self.scales = torch.tensor([[1 / (1 - rate) for rate in pair] for pair in rates], device=device)

    @property
    def device(self) -> torch.device:
        """Where the heads are computed."""
        return self.class_weights.device

    @abstractmethod
    def train(
        self, batches: EqualBatches, seeds: Sequence[int], streams: Sequence[int], rates: Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        """Train all heads for one step per batch.

        Heads of one stream have the same seed, so they see the same rows in the same order.

        Args:
            batches: T batches of B rows, on the engine's device; places and labels are (S, T, B), for S streams.
            seeds: of the streams, S in all.
            streams: the stream of each head, K numbers, ascending.
            rates: K learning rates.

        Returns:
            Sums over the rows of the losses, float32 (K,), and how many rows were classified correctly, int64 (K,);
            both on the engine's device.
        """

    def keep(self, heads: Sequence[int]) -> None:
        """Drop all but some of the heads, given by their present numbers."""
        chosen = list(heads)
        self.specs = [self.specs[head] for head in chosen]
        self.models = [self.models[head] for head in chosen]
        self.state = {name: values.detach()[chosen] for name, values in self.state.items()}
        for name in ("class_weights", "keep_below", "scales"):
            setattr(self, name, getattr(self, name)[chosen])

    @torch.no_grad()
    def logits(self, features: Tensor, state: State) -> Tensor:
        """Return logits (K, N, C) of the same features float32 (N, D) for all heads, in evaluation mode.

        Args:
            features: where the heads are.
            state: the present weights, or an average of them.
        """
        return torch.stack(
            [
                functional_call(model, {name: values[head] for name, values in state.items()}, (features,))
                for head, model in enumerate(self.models)
            ]
        )
