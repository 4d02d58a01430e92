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
        head: BatchNorm1d, Linear, ReLU and Dropout, with a Linear after every BatchNorm1d, before any ReLU.

    Raises:
        SpecError: if the head has another kind of layer.
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
        logits, gradients = x, None
        for layer in reversed(self.layers):
            if isinstance(layer, nn.ReLU):
                gradients = _not_none(gradients) * active.pop().unsqueeze(1)
            else:
                weight = cast(nn.Linear, layer).weight
                gradients = weight.unsqueeze(0) if gradients is None else torch.matmul(gradients, weight)
        return logits, _not_none(gradients)


def _not_none(gradients: Tensor | None) -> Tensor:
    if gradients is None:
        raise SpecError("a head must end with a Linear layer", expected="Linear", found="ReLU")
    return gradients


def _folded(head: nn.Sequential) -> Iterator[nn.Module]:
    # In float64, so that the products are rounded only once, at the end.
    scale: Tensor | None = None
    shift: Tensor | None = None
    for module in head:
        match module:
            case nn.Dropout() | nn.Identity():
                continue
            case nn.BatchNorm1d():
                factor, offset = _affine(module)
                scale, shift = (
                    (factor, offset) if scale is None else (scale * factor, _not_none(shift) * factor + offset)
                )
            case nn.Linear():
                weight = module.weight.detach().double()
                bias = weight.new_zeros(len(weight)) if module.bias is None else module.bias.detach().double()
                if scale is not None:
                    weight, bias = weight * scale, bias + weight @ _not_none(shift)
                scale = shift = None
                yield _linear(weight, bias)
            case nn.ReLU() if scale is None:
                yield nn.ReLU()
            case _:
                raise SpecError(
                    "a head with a layer that cannot be exported",
                    expected="Linear → ReLU → BatchNorm → Dropout, repeated, and a Linear at the end",
                    found=repr(module),
                )
    if scale is not None:
        raise SpecError("a head must end with a Linear layer", expected="Linear", found="BatchNorm1d")


def _affine(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        raise SpecError("a BatchNorm without running statistics", expected="track_running_stats", found=repr(norm))
    factor = (variance.double() + norm.eps).rsqrt()
    if norm.affine:
        factor = factor * norm.weight.detach().double()
    offset = -mean.double() * factor
    return factor, offset + norm.bias.detach().double() if norm.affine else offset


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight = nn.Parameter(weight.float().contiguous(), requires_grad=False)
    layer.bias = nn.Parameter(bias.float(), requires_grad=False)
    return layer
