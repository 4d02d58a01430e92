"""Adam, as ``torch.optim.Adam(fused=True)`` computes it, to the bit.

The class in torch imports its whole compiler when the first step is taken, which takes as long as importing torch
itself. This one calls the same public function for the step, and nothing else: see docs/decisions/0030.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam

# Source: Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2015; also the defaults of torch.optim.Adam.
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


class FusedAdam:
    """Adam over a list of parameters.

    Args:
        parameters: leaf tensors, changed in place by :meth:`step`.
        lr: the learning rate; may be set anew between steps.
        weight_decay: L2 penalty, added to the gradients.
    """

    def __init__(self, parameters: Iterable[Tensor], *, lr: float, weight_decay: float = 0.0) -> None:
        self.parameters = list(parameters)
        self.lr = lr
        self.weight_decay = weight_decay
        self._means = [torch.zeros_like(p) for p in self.parameters]
        self._squares = [torch.zeros_like(p) for p in self.parameters]
        self._steps = [torch.zeros((), device=p.device) for p in self.parameters]

    def step(self, gradients: Sequence[Tensor]) -> None:
        """Move the parameters against ``gradients``, which are as many and in the same order."""
        with torch.no_grad():
            adam(
                self.parameters,
                list(gradients),
                self._means,
                self._squares,
                [],
                self._steps,
                fused=True,
                amsgrad=False,
                beta1=BETA1,
                beta2=BETA2,
                lr=self.lr,
                weight_decay=self.weight_decay,
                eps=EPS,
                maximize=False,
            )
