"""The layers of several heads of one shape, forwards and backwards, on tensors (K, B, width) for K heads and B rows.

Gradients are written out here instead of recorded by autograd: what lies between the matrix products took as long as
the products themselves. docs/decisions/0034 has the figures. Sources of the formulas are torch's own layers, against
which tests hold them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


class Layer(ABC):
    """One layer of K heads."""

    @abstractmethod
    def train(self, values: Tensor) -> Tensor:
        """Return what comes out in training mode (K, B, width), and keep what :meth:`back` needs."""

    @abstractmethod
    def back(self, upstream: Tensor) -> Tensor:
        """Write the gradients of the layer's own weights; return that of its input, both from that of its output."""

    @abstractmethod
    def evaluate(self, values: Tensor, state: State) -> Tensor:
        """Return what comes out in evaluation mode, with the weights in ``state``, named as in its module."""


class Normalization(Layer):
    """Batch normalisation over the rows.

    Args:
        module: K heads have this one.
        state: its entries, stacked; the running statistics are changed in place.
        gradients: of ``weight`` and ``bias``, written by :meth:`back`.
        first: whether nothing that learns comes before it, so that nobody asks for the gradient of its input.
    """

    def __init__(self, module: nn.BatchNorm1d, state: State, gradients: State, *, first: bool) -> None:
        self._eps, self._momentum = module.eps, module.momentum or 0.0
        self._state, self._gradients, self._first = state, gradients, first
        self._normalized = self._factor = torch.empty(0)

    def train(self, values: Tensor) -> Tensor:
        count, state = values.shape[1], self._state
        mean = values.mean(1, keepdim=True)
        centred = values - mean
        variance = centred.square().mean(1, keepdim=True)
        self._factor = (variance + self._eps).rsqrt()
        self._normalized = centred.mul_(self._factor)
        state["num_batches_tracked"] += 1
        state["running_mean"].lerp_(mean.squeeze(1), self._momentum)
        state["running_var"].lerp_(variance.squeeze(1) * (count / (count - 1)), self._momentum)
        return torch.addcmul(state["bias"].unsqueeze(1), self._normalized, state["weight"].unsqueeze(1))

    def back(self, upstream: Tensor) -> Tensor:
        bias, weight = self._gradients["bias"], self._gradients["weight"]
        torch.sum(upstream, 1, out=bias)
        torch.sum(upstream * self._normalized, 1, out=weight)
        if self._first:
            return upstream
        share = -1 / upstream.shape[1]
        found = torch.add(upstream, bias.unsqueeze(1), alpha=share)
        found.addcmul_(self._normalized, weight.unsqueeze(1), value=share)
        return found.mul_(self._state["weight"].unsqueeze(1) * self._factor)

    def evaluate(self, values: Tensor, state: State) -> Tensor:
        factor = state["weight"] * (state["running_var"] + self._eps).rsqrt()
        shift = state["bias"] - state["running_mean"] * factor
        return torch.addcmul(shift.unsqueeze(1), values, factor.unsqueeze(1))


class Linear(Layer):
    """A linear layer.

    Args:
        state: ``weight`` (K, H, D) and ``bias`` (K, H).
        gradients: of both, written by :meth:`back`.
    """

    def __init__(self, state: State, gradients: State) -> None:
        self._state, self._gradients = state, gradients
        self._inputs = torch.empty(0)

    def train(self, values: Tensor) -> Tensor:
        self._inputs = values
        return self.evaluate(values, self._state)

    def back(self, upstream: Tensor) -> Tensor:
        torch.bmm(upstream.transpose(1, 2), self._inputs, out=self._gradients["weight"])
        torch.sum(upstream, 1, out=self._gradients["bias"])
        return torch.bmm(upstream, self._state["weight"])

    def evaluate(self, values: Tensor, state: State) -> Tensor:
        # Weights times transposed rows is the faster order of the two for few rows: see docs/decisions/0040.
        weight, bias = state["weight"], state["bias"].unsqueeze(2)
        return (
            torch.baddbmm(bias, weight, values.expand(len(weight), -1, -1).transpose(1, 2)).transpose(1, 2).contiguous()
        )


class Rectifier(Layer):
    """ReLU."""

    def __init__(self) -> None:
        self._passed = torch.empty(0)

    def train(self, values: Tensor) -> Tensor:
        self._passed = values > 0
        return values.relu()

    def back(self, upstream: Tensor) -> Tensor:
        return upstream * self._passed

    def evaluate(self, values: Tensor, state: State) -> Tensor:
        return values.relu()


class Mask(Layer):
    """Dropout with factors that were drawn elsewhere."""

    def __init__(self) -> None:
        self.factors: Tensor | None = None

    def train(self, values: Tensor) -> Tensor:
        return values if self.factors is None else values * self.factors

    def back(self, upstream: Tensor) -> Tensor:
        return upstream if self.factors is None else upstream * self.factors

    def evaluate(self, values: Tensor, state: State) -> Tensor:
        return values
