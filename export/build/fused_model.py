"""Backbone and head as torch modules: the fused one that is exported, and the reference that was trained."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from xfeat.export.build.dense_head import DenseHead
from xfeat.export.build.ood_score import OodScore
from xfeat.export.model.interface import CORE_OUTPUTS, HEATMAP, OOD
from xfeat.featurize.backbones.network import Backbone, Normalize
from xfeat.featurize.specs import PreprocessSpec


class ReferenceModel(nn.Module):
    """Encoder and head one after the other, exactly as trained: exported models are compared with it.

    Args:
        backbone: frozen, from normalised images (N, 3, S, S), or pixels (N, S, S, 3), to features (N, D).
        head: from features (N, D) to logits (N, C), in evaluation mode.
        preprocess: mean and std; ``None`` if the backbone takes pixels.
        temperature: logits are divided by it before the softmax.
    """

    def __init__(
        self, backbone: nn.Module, head: nn.Sequential, preprocess: PreprocessSpec | None, temperature: float
    ) -> None:
        super().__init__()
        self.normalize = nn.Identity() if preprocess is None else Normalize(preprocess)
        self.backbone = backbone
        self.head = head
        self.temperature = temperature
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """Return probabilities (N, C) of uint8 (N, S, S, 3)."""
        logits: Tensor = self.head(self.backbone(self.normalize(pixels)))
        return torch.softmax(logits / self.temperature, dim=1)


class Tail(nn.Module):
    """From features to all outputs of the model.

    Args:
        reference: the model as it was trained.
        ood_score: fitted to the training features; without it there is no output ``ood``.
        heatmap: whether there are maps of which the features are means; without them there is no output ``heatmap``.

    Attributes:
        output_names: of the tensors that :meth:`forward` returns, in order.
    """

    def __init__(self, reference: ReferenceModel, ood_score: OodScore | None, *, heatmap: bool = True) -> None:
        super().__init__()
        self.head = DenseHead(reference.head)
        self.temperature = reference.temperature
        self.ood_score = ood_score
        has = {HEATMAP: heatmap, OOD: ood_score is not None}
        self.output_names = [*CORE_OUTPUTS, *(name for name, present in has.items() if present)]

    def forward(self, features: Tensor, maps: Tensor | None) -> tuple[Tensor, ...]:
        """Return probabilities (N, C), logits (N, C) and, if there are such, heatmap (N, C, h, w) and ood (N,).

        Args:
            features: float32 (N, D).
            maps: float32 (N, K, h, w), whose means are the first K features; ``None`` without a heatmap.
        """
        logits, gradients = self.head(features)
        outputs = [torch.softmax(logits / self.temperature, dim=1), logits]
        if maps is not None:
            outputs.append(grad_cam(maps, gradients))
        if self.ood_score is not None:
            outputs.append(self.ood_score(features))
        return tuple(outputs)


class FusedModel(nn.Module):
    """From images of the model's size to all outputs, with a network of this project.

    Takes uint8 (N, S, S, 3) RGB, or float32 (N, 3, S, S) RGB in 0..255.

    Args:
        reference: the model as it was trained.
        ood_score: as for :class:`Tail`.

    Attributes:
        output_names: of the tensors that :meth:`forward` returns, in order.
    """

    def __init__(self, reference: ReferenceModel, ood_score: OodScore | None = None) -> None:
        super().__init__()
        self.normalize, self.backbone = reference.normalize, cast(Backbone, reference.backbone)
        self.tail = Tail(reference, ood_score)
        self.output_names = self.tail.output_names
        self.eval()

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Return probabilities (N, C), logits (N, C), heatmap (N, C, h, w) and, if fitted, ood (N,)."""
        maps = self.backbone.maps(self.normalize(pixels))
        features = torch.cat([pooled.mean((2, 3)) for pooled in maps], dim=1)
        outputs: tuple[Tensor, ...] = self.tail(features, maps[0])
        return outputs


def grad_cam(last_maps: Tensor, gradients: Tensor) -> Tensor:
    """Return the Grad-CAM of every class, from the last layer of the backbone.

    A feature is the mean of a map, so the gradient at each pixel is that of the feature divided by the number of
    pixels, and so is the mean gradient: no backpropagation through the backbone is needed.

    Args:
        last_maps: float32 (N, K, h, w), of the backbone's last layer.
        gradients: float32 (N or 1, C, D) of the logits by the features, of which the first K belong to ``last_maps``.

    Returns:
        float32 (N, C, h, w), 0 or more.

    Source: Selvaraju et al. 2017 (arXiv:1610.02391), equations 1 and 2.
    """
    count, channels, height, width = last_maps.shape
    weights = gradients[:, :, :channels] / (height * width)
    cam = torch.matmul(weights, last_maps.flatten(2))
    return torch.relu(cam).reshape(count, -1, height, width)
