"""Adam, as ``torch.optim.Adam(fused=True)`` computes it, to the bit.

The class in torch imports its whole compiler when the first step is taken, which takes as long as importing torch
itself. This one calls the same kernel for the step, and nothing else: see docs/decisions/0030.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

# Source: Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2015; also the defaults of torch.optim.Adam.
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


class StackedAdam:
    """Adam over the parameters of K heads, each with a learning rate and a weight decay of its own.

    On a CPU, neighbours with the same ones are moved by one fused call. On a GPU a call per head would take longer than
    what it computes, so there one call moves all, whose results may differ in the last bit.

    Args:
        parameters: tensors (K, …).
        weight_decays: K factors of the L2 penalty, which is added to the gradients.
    """

    def __init__(self, parameters: Sequence[Tensor], weight_decays: Sequence[float]) -> None:
        self._decays = list(weight_decays)
        self._means = [torch.zeros_like(values.detach()) for values in parameters]
        self._squares = [torch.zeros_like(values.detach()) for values in parameters]
        self._count = torch.zeros((), device=parameters[0].device)
        self._sent: tuple[list[tuple[float, float]], Tensor] = ([], self._count)

    @torch.no_grad()
    def step(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], rates: Sequence[float]) -> None:
        """Move the parameters, in place, against as many gradients, with K learning rates."""
        self._count += 1
        settings = list(zip(rates, self._decays, strict=True))
        if self._count.is_cuda and len(set(settings)) > 1:
            self._step_at_once(parameters, gradients, settings)
            return
        for (rate, decay), run in groupby(range(len(settings)), key=settings.__getitem__):
            heads = list(run)
            some = slice(heads[0], heads[-1] + 1)
            self._fused([values[some] for values in parameters], gradients, rate, decay, some)

    def _step_at_once(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], settings: list[tuple[float, float]]
    ) -> None:
        if self._sent[0] != settings:  # they are sent to the GPU when they change, not at each step
            self._sent = settings, self._count.new_tensor(settings).T
        rates, decays = self._sent[1]
        if any(self._decays):
            gradients = [
                torch.addcmul(each, values, _column(decays, values))
                for each, values in zip(gradients, parameters, strict=True)
            ]
        moves = [torch.zeros_like(values) for values in parameters]
        self._fused(moves, gradients, 1.0, 0.0, slice(None))
        for values, move in zip(parameters, moves, strict=True):
            values.addcmul_(move, _column(rates, values))

    def _fused(
        self, parameters: list[Tensor], gradients: Sequence[Tensor], rate: float, decay: float, heads: slice
    ) -> None:
        torch._fused_adam_(
            parameters,
            [values[heads] for values in gradients],
            [values[heads] for values in self._means],
            [values[heads] for values in self._squares],
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
        """Drop all but some of the heads, given by their present numbers."""
        chosen = list(heads)
        self._decays = [self._decays[head] for head in chosen]
        self._means = [values[chosen] for values in self._means]
        self._squares = [values[chosen] for values in self._squares]


def _column(numbers: Tensor, like: Tensor) -> Tensor:
    """Return one number per head (K,) in the shape (K, 1, …) of a parameter."""
    return numbers.reshape(-1, *[1] * (like.dim() - 1))
