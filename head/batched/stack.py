"""Several heads of one shape as one tensor program: each layer holds the weights of all of them, stacked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from xfeat.head.batched.layers import Layer, Linear, Mask, Normalization, Rectifier, State


class HeadStack:
    """K heads of one shape, computed side by side; none knows of the others.

    The layers are read off the modules that :func:`xfeat.head.training.network.build_head` built, so that what a head
    is stays written in one place.

    Args:
        models: K heads with layers of the same sizes; only their dropout may differ.
        device: where they are computed.

    Attributes:
        models: as given; their own weights are not touched.
        state: the K state dicts, stacked: name to (K, …).
        trained: names of the entries of ``state`` behind :attr:`parameters`.
    """

    def __init__(self, models: Sequence[nn.Sequential], device: torch.device | str = "cpu") -> None:
        self.models = list(models)
        self._modules = list(models[0])
        states = [model.state_dict() for model in models]
        self.state: State = {name: torch.stack([state[name] for state in states]).to(device) for name in states[0]}
        self.trained = [name for name, _ in models[0].named_parameters()]
        self._prepare()

    def __len__(self) -> int:
        return len(self.models)

    def keep(self, heads: Sequence[int]) -> None:
        """Go on with some of the heads, given by their present numbers."""
        self.models = [self.models[head] for head in heads]
        self.state = {name: values[list(heads)] for name, values in self.state.items()}
        self._prepare()

    @property
    def parameters(self) -> list[Tensor]:
        """The stacked tensors that an optimizer moves."""
        return [self.state[name] for name in self.trained]

    @torch.no_grad()
    def train_logits(self, features: Tensor, masks: Sequence[Tensor | None]) -> Tensor:
        """Return logits (K, B, C) with the statistics of the batch, which the running ones follow.

        Args:
            features: float32 (K, B, D), each head's own rows, or (1, B, D), the same for all.
            masks: per dropout layer float32 (K, B, width) or (1, B, width), the factors of its inputs, or ``None`` for
                no dropout.
        """
        rest, values = iter(masks), features
        for layer in self._layers:
            if isinstance(layer, Mask):
                layer.factors = next(rest)
            values = layer.train(values)
        return values

    @torch.no_grad()
    def gradients(self, upstream: Tensor) -> list[Tensor]:
        """Return gradients, as :attr:`parameters` are, from those (K, B, C) of the logits that came last.

        They are overwritten by the next call.
        """
        for layer in reversed(self._layers[self._first :]):
            upstream = layer.back(upstream)
        return [self._gradients[name] for name in self.trained]

    @torch.no_grad()
    def logits(self, features: Tensor, state: State | None = None) -> Tensor:
        """Return logits (K, N, C) of the same features (N, D) for all heads, as in evaluation mode.

        Args:
            features: float32.
            state: instead of the stack's own, such as an average of it.
        """
        # The rows are copied once a head: few at a time keep that small.
        blocks = []
        for block in torch.split(features, 256):
            values = block.unsqueeze(0)
            for index, layer in enumerate(self._layers):
                values = layer.evaluate(values, _entries(state or self.state, index))
            blocks.append(values)
        return torch.cat(blocks, 1)

    def _prepare(self) -> None:
        # Made once: memory of this size comes fresh from the system each time it is asked for, and a thread would
        # spend as long on getting it as on filling it.
        self._gradients = {name: torch.empty_like(self.state[name]) for name in self.trained}
        self._first = next(place for place, module in enumerate(self._modules) if isinstance(module, nn.BatchNorm1d))
        self._layers = [self._layer(index, module) for index, module in enumerate(self._modules)]

    def _layer(self, index: int, module: nn.Module) -> Layer:
        state, gradients = _entries(self.state, index), _entries(self._gradients, index)
        if isinstance(module, nn.BatchNorm1d):
            return Normalization(module, state, gradients, first=index == self._first)
        if isinstance(module, nn.Linear):
            return Linear(state, gradients)
        if isinstance(module, nn.ReLU):
            return Rectifier()
        if isinstance(module, nn.Dropout):
            return Mask()
        raise TypeError(f"a stack of heads has no {type(module).__name__}")


def _entries(state: State, index: int) -> State:
    prefix = f"{index}."
    return {name.removeprefix(prefix): values for name, values in state.items() if name.startswith(prefix)}
