"""A frozen network as torch computes features with it: fewer operations than it was trained with, the same features.

The ONNX exporters keep the network as it is: onnxruntime and OpenVINO do the same when they load a graph. Figures:
docs/decisions/0092-a-gpu-kept-busy.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from xfeat.featurize.backbones.network import Normalize, load_backbone
from xfeat.featurize.backbones.weights import Weights
from xfeat.featurize.specs import FeatureSpec


class InferenceNetwork(nn.Module):
    """Pixels to features: uint8 (N, S, S, 3) RGB to float32 (N, D).

    Pixels are normalised and maps are averaged in float32, whatever the precision of the layers between.

    Args:
        spec: backbone, image size, pooling, and the precision of weights and maps.
        weights: of the backbone.
        layout: memory format of weights and maps.

    Raises:
        WeightsError: if the weights belong to another backbone.
        MissingExtraError: if the package that defines the network is not installed.
    """

    def __init__(self, spec: FeatureSpec, weights: Weights, layout: torch.memory_format) -> None:
        super().__init__()
        self._dtype: torch.dtype = getattr(torch, spec.precision)
        self._layout = layout
        self.normalize = Normalize(spec.preprocess)
        backbone = load_backbone(spec, weights)
        _fold_batch_norms(backbone.model)
        self.backbone = backbone.to(self._dtype).to(memory_format=layout)

    def forward(self, pixels: Tensor) -> Tensor:
        # Pixels have their channels last, and every layer takes over the layout of its input.
        images = self.normalize(pixels).to(self._dtype, memory_format=self._layout)
        return cast(Tensor, self.backbone(images))


def _fold_batch_norms(model: Any) -> None:
    """Move each batch normalisation into the convolution before it, and symmetric paddings into the convolutions."""
    for owner, convolution, norm in _convolutions(model):
        # In float64: the weights are rounded once.
        folded = fuse_conv_bn_eval(getattr(owner, convolution).double(), getattr(owner, norm).double()).float()
        setattr(owner, convolution, folded)
        setattr(owner, norm, nn.Identity())
    for module in model.modules():
        padding = getattr(module, "static_padding", None)
        if isinstance(padding, nn.ZeroPad2d):
            left, right, top, bottom = padding.padding
            if (left, top) == (right, bottom):
                module.padding, module.static_padding = (top, left), nn.Identity()


def _convolutions(model: Any) -> Iterator[tuple[Any, str, str]]:
    """Yield owner and names of each convolution that a batch normalisation follows."""
    yield model, "_conv_stem", "_bn0"
    for block in model._blocks:
        if hasattr(block, "_expand_conv"):
            yield block, "_expand_conv", "_bn0"
        yield block, "_depthwise_conv", "_bn1"
        yield block, "_project_conv", "_bn2"
    yield model, "_conv_head", "_bn1"
