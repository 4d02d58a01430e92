"""Backbone and head as one torch module: pixels in, probabilities out. It is what is exported and what is checked."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from featurize.network import Backbone, Normalize
from featurize.specs import PreprocessSpec


class Answer(NamedTuple):
    """Outputs of a model, in the order of :data:`OUTPUTS`.

    Attributes:
        probabilities: float32 (N, C), rows adding up to 1.
        logits: float32 (N, C), before the temperature.
    """

    probabilities: Tensor
    logits: Tensor


OUTPUTS = list(Answer._fields)


class FusedModel(nn.Module):
    """From pixels of the model's size to :class:`Answer`.

    Takes uint8 (N, S, S, 3) RGB, or float32 (N, 3, S, S) RGB in 0..255.

    Args:
        backbone: frozen.
        head: from features (N, D) to logits (N, C), in evaluation mode.
        preprocess: mean and std.
        temperature: logits are divided by it before the softmax.
    """

    def __init__(self, backbone: Backbone, head: nn.Module, preprocess: PreprocessSpec, temperature: float) -> None:
        super().__init__()
        self.normalize = Normalize(preprocess)
        self.backbone = backbone
        self.head = head
        self.temperature = temperature
        self.eval()

    def forward(self, pixels: Tensor) -> Answer:
        logits = self.head(self.backbone(self.normalize(pixels)))
        return Answer(torch.softmax(logits / self.temperature, dim=1), logits)
