"""Adam for a stack of heads, each with its own learning rate and weight decay."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xfeat.head.training.adam import BETA1, BETA2, EPS


class StackedAdam:
    """Adam over stacked parameters, which moves each head as :class:`xfeat.head.training.adam.FusedAdam` moves it
    alone.

    Its step is the kernel behind ``torch.optim.adam.adam(fused=True)``, called without what surrounds it: there, adding
    one to the count of each parameter of each head takes longer than a small head's whole step.

    Args:
        parameters: (K, …) each, changed in place by :meth:`step`.
        weight_decays: K L2 penalties.
    """

    def __init__(self, parameters: Sequence[Tensor], weight_decays: Sequence[float]) -> None:
        self._weight_decays = list(weight_decays)
        self._count = torch.zeros((), device=parameters[0].device)  # the kernel reads it there
        self._means = [torch.zeros_like(values.detach()) for values in parameters]
        self._squares = [torch.zeros_like(values.detach()) for values in parameters]
        self._move_to(parameters)

    def keep(self, heads: Sequence[int], parameters: Sequence[Tensor]) -> None:
        """Go on with some of the heads, given by their present numbers, whose stacked parameters are now these."""
        self._weight_decays = [self._weight_decays[head] for head in heads]
        self._means, self._squares = (
            [values[list(heads)] for values in stack] for stack in (self._means, self._squares)
        )
        self._move_to(parameters)

    def step(self, gradients: Sequence[Tensor], rates: Sequence[float]) -> None:
        """Move the parameters against ``gradients``, stacked as they are, at K learning rates."""
        self._count += 1
        by_head = zip(*(gradient.unbind() for gradient in gradients), strict=True)
        with torch.no_grad():
            for views, head, rate, decay in zip(self._views, by_head, rates, self._weight_decays, strict=True):
                parameters, means, squares = views
                torch._fused_adam_(
                    parameters,
                    list(head),
                    means,
                    squares,
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

    def _move_to(self, parameters: Sequence[Tensor]) -> None:
        stacks = ([values.detach() for values in parameters], self._means, self._squares)
        # Views of one head after the other, made once: (parameters, means, squares).
        self._views = [
            tuple([values[head] for values in stack] for stack in stacks) for head in range(len(self._weight_decays))
        ]
