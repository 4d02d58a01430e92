"""The head as a torch module, built from its spec."""

from __future__ import annotations

import math

import torch
from torch import nn

from xfeat.head.specs import HeadSpec


def build_head(spec: HeadSpec, *, dim: int, classes: int, seed: int = 0) -> nn.Sequential:
    """Build an untrained head; torch's global random state is neither used nor changed.

    Args:
        spec: its layers.
        dim: number of features D.
        classes: number of classes C.
        seed: of the initial weights, which are drawn as torch's own layers draw them.

    Returns:
        A module from float32 (N, D) to logits (N, C).
    """
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = [nn.Dropout(spec.feature_dropout)] if spec.feature_dropout else []
    layers.append(nn.BatchNorm1d(dim))
    for width in spec.hidden:
        layers += [_linear(dim, width, generator), nn.ReLU(), nn.BatchNorm1d(width)]
        dim = width
    return nn.Sequential(*layers, nn.Dropout(spec.dropout), _linear(dim, classes, generator))


def _linear(below: int, above: int, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(below, above, device="meta")  # whose own initial weights are never drawn
    bound = 1 / math.sqrt(below)
    layer.weight = nn.Parameter(torch.empty(above, below).uniform_(-bound, bound, generator=generator))
    layer.bias = nn.Parameter(torch.empty(above).uniform_(-bound, bound, generator=generator))
    return layer
