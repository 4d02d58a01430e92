"""The head as a torch module, built from its spec."""

from __future__ import annotations

from torch import nn

from xfeat.head.specs import HeadSpec


def build_head(spec: HeadSpec, *, dim: int, classes: int) -> nn.Sequential:
    """Build an untrained head.

    Args:
        spec: its layers.
        dim: number of features D.
        classes: number of classes C.

    Returns:
        A module from float32 (N, D) to logits (N, C).
    """
    layers: list[nn.Module] = [nn.Dropout(spec.feature_dropout)] if spec.feature_dropout else []
    layers.append(nn.BatchNorm1d(dim))
    for width in spec.hidden:
        layers += [nn.Linear(dim, width), nn.ReLU(), nn.BatchNorm1d(width)]
        dim = width
    return nn.Sequential(*layers, nn.Dropout(spec.dropout), nn.Linear(dim, classes))
