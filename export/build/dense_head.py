"""A trained head with the fewest operators: BatchNorms folded into Linear layers, gradients in closed form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from xfeat.featurize.errors import SpecError


class DenseHead(nn.Module):
    """Only Linear layers and ReLUs, equal to a head with BatchNorms in evaluation mode.

    Args:
        head: BatchNorm1d, Linear, ReLU and Dropout, with a Linear after every BatchNorm1d, before any ReLU, and at the
            end.

    Raises:
        SpecError: if the head has another kind or order of layers.
    """

    def __init__(self, head: nn.Sequential) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_folded(head))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits, and the gradient of each logit with respect to the features, computed forward.

        A ReLU passes a gradient where its input is positive and zero elsewhere, so the gradient of the whole head is a
        product of weight matrices with some of their rows set to zero.

        Args:
            features: float32 (N, D).

        Returns:
            logits (N, C) and gradients (N, C, D), the latter (1, C, D) if they do not depend on the image.
        """
        x, active = features, []
        for layer in self.layers:
            if isinstance(layer, nn.ReLU):
                active.append((x > 0).to(x.dtype))
            x = layer(x)
        gradients = cast(nn.Linear, self.layers[-1]).weight.unsqueeze(0)
        for layer in reversed(self.layers[:-1]):
            if isinstance(layer, nn.ReLU):
                gradients = gradients * active.pop().unsqueeze(1)
            else:
                gradients = torch.matmul(gradients, cast(nn.Linear, layer).weight)
        return x, gradients


def _folded(head: nn.Sequential) -> Iterator[nn.Module]:
    # In float64, so that the products are rounded only once, at the end.
    norm: tuple[Tensor, Tensor] | None = None
    last: nn.Module | None = None
    for module in head:
        match module:
            case nn.Dropout() | nn.Identity():
                continue
            case nn.BatchNorm1d() if norm is None:
                norm = _affine(module)
            case nn.Linear():
                weight, bias = module.weight.detach().double(), module.bias.detach().double()
                if norm is not None:
                    scale, shift = norm
                    weight, bias = weight * scale, bias + weight @ shift
                norm = None
                yield _linear(weight, bias)
            case nn.ReLU() if norm is None:
                yield nn.ReLU()
            case _:
                raise SpecError(
                    "a head with a layer that cannot be exported",
                    expected="Linear → ReLU → BatchNorm → Dropout, repeated, and a Linear at the end",
                    found=repr(module),
                )
        last = module
    if not isinstance(last, nn.Linear):
        raise SpecError("a head must end with a Linear layer", expected="Linear", found=repr(last))


def _affine(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Return the factor and the shift (D,) by which a BatchNorm maps features."""
    mean, variance = cast(Tensor, norm.running_mean).double(), cast(Tensor, norm.running_var).double()
    factor = (variance + norm.eps).rsqrt() * norm.weight.detach().double()
    return factor, norm.bias.detach().double() - mean * factor


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight = nn.Parameter(weight.float().contiguous(), requires_grad=False)
    layer.bias = nn.Parameter(bias.float(), requires_grad=False)
    return layer
