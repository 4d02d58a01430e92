"""The frozen networks as torch modules, for all code that runs a backbone in torch or exports it to ONNX."""

from __future__ import annotations

import hashlib
import importlib
import io
import pickle
from typing import Any, cast

import torch
from torch import Tensor, nn

from xfeat.featurize.backbones.registry import backbone_info
from xfeat.featurize.backbones.weights import Weights
from xfeat.featurize.errors import WeightsError, needs_extra
from xfeat.featurize.specs import FeatureSpec, PreprocessSpec


class Normalize(nn.Module):
    """Pixels to the backbone's input: uint8 (N, S, S, 3) or float (N, 3, S, S) in 0..255, to float32 (N, 3, S, S)."""

    mean: Tensor
    std: Tensor

    def __init__(self, spec: PreprocessSpec) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(spec.mean).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(spec.std).reshape(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        if pixels.dtype == torch.uint8:
            pixels = pixels.permute(0, 3, 1, 2).to(self.mean.dtype)
        return (pixels / 255 - self.mean) / self.std


class Backbone(nn.Module):
    """A frozen EfficientNet without its classifier.

    Attributes:
        pooling: which maps are averaged into features.
        dim: number of features.
    """

    def __init__(self, model: nn.Module, pooling: str = "final") -> None:
        super().__init__()
        self.model = cast(Any, model)
        self.pooling = pooling
        self._stage_ends = _last_blocks_of_stages(self.model)[2:] if pooling == "multilevel" else []
        widths = [self.model._blocks[i]._project_conv.out_channels for i in self._stage_ends]
        self.dim = self.model._conv_head.out_channels + sum(widths)
        _use_exportable_swish(self.model)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Backbone:
        """Stay in evaluation mode: batch statistics and drop-connect would change the cached features."""
        return super().train(False)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps that pooling averages: the last layer's, then those of stages 3 to 7 if multilevel.

        Args:
            images: normalised float32 (N, 3, S, S).

        Returns:
            float32 tensors (N, C_i, h_i, w_i).
        """
        model = self.model
        x = model._swish(model._bn0(model._conv_stem(images)))
        inner = []
        for index, block in enumerate(model._blocks):
            x = block(x)
            if index in self._stage_ends:
                inner.append(x)
        return [model._swish(model._bn1(model._conv_head(x))), *inner]

    def forward(self, images: Tensor) -> Tensor:
        """Return features (N, dim) of normalised images (N, 3, S, S)."""
        # Means are computed in float32, whatever the precision of the maps.
        return torch.cat([pooled.float().mean((2, 3)) for pooled in self.maps(images)], dim=1)


class FeatureNetwork(nn.Module):
    """Pixels to features, the network of every engine: uint8 (N, S, S, 3) RGB to float32 (N, D)."""

    def __init__(self, backbone: Backbone, spec: PreprocessSpec) -> None:
        super().__init__()
        self.normalize = Normalize(spec)
        self.backbone = backbone

    def forward(self, pixels: Tensor) -> Tensor:
        return cast(Tensor, self.backbone(self.normalize(pixels)))


def load_backbone(spec: FeatureSpec, weights: Weights) -> Backbone:
    """Build the backbone of ``spec`` with the given weights, frozen and in evaluation mode.

    Args:
        spec: backbone, image size and pooling.
        weights: a file with a state dict in the format of ``efficientnet_pytorch``.

    Raises:
        WeightsError: if the file is not a state dict of that network, or has another digest.
        MissingExtraError: if the package that defines the network is not installed.
    """
    info = backbone_info(spec.backbone)
    with needs_extra("train"):
        package = importlib.import_module(info.package)
    # The size decides the padding of strided convolutions: without it, graphs cannot be exported.
    model = package.EfficientNet.from_name(spec.backbone, image_size=spec.preprocess.size)
    _load_state(model, weights)
    return Backbone(model, spec.pooling)


def _load_state(model: nn.Module, weights: Weights) -> None:
    expected = model.state_dict()
    try:
        content = weights.path.read_bytes()
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise _wrong_weights(
            weights, f"a file that torch cannot load as plain tensors ({type(error).__name__})"
        ) from error
    if (digest := hashlib.sha256(content).hexdigest()) != weights.sha256:
        raise _wrong_weights(weights, f"SHA-256 {digest[:16]}… instead of {weights.sha256[:16]}…: it has changed")
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise _wrong_weights(weights, f"a {type(found).__name__}, not a state dict of tensors")
    classifier = {
        key for key in expected if key.startswith("_fc.")
    }  # not used, and of another width in fine-tuned files
    counters = {key for key in expected if key.endswith("num_batches_tracked")}  # absent from old files
    shared = expected.keys() - classifier
    if missing := sorted(shared - counters - found.keys()):
        raise _wrong_weights(weights, f"{len(missing)} of {len(shared)} tensors missing, such as {missing[0]}")
    if surplus := sorted(found.keys() - expected.keys()):
        raise _wrong_weights(weights, f"{len(surplus)} unknown tensors, such as {surplus[0]}")
    for key in shared & found.keys():
        if found[key].shape != expected[key].shape:
            shapes = f"{tuple(found[key].shape)} instead of {tuple(expected[key].shape)}"
            raise _wrong_weights(weights, f"{key} has shape {shapes}")
    model.load_state_dict({key: found[key] for key in shared & found.keys()}, strict=False)


def _wrong_weights(weights: Weights, found: str) -> WeightsError:
    return WeightsError(
        f"not the weights of {weights.backbone}",
        path=weights.path,
        expected=f"a state dict of {weights.backbone} as efficientnet_pytorch saves it",
        found=found,
        fix="choose the backbone of this file with --backbone, or another file with --weights",
    )


def _use_exportable_swish(model: Any) -> None:
    # The memory-efficient swish is a custom autograd function, which does not export. The Lite family has ReLU6
    # instead, which set_swish would replace silently, so it must not be called there.
    if not isinstance(model._swish, nn.ReLU6):
        model.set_swish(memory_efficient=False)


def _last_blocks_of_stages(model: Any) -> list[int]:
    # In every member of the family the first block of a stage, and only that one, changes the number of channels.
    starts = [
        index
        for index, block in enumerate(model._blocks)
        if block._block_args.input_filters != block._block_args.output_filters
    ]
    return [start - 1 for start in starts[1:]] + [len(model._blocks) - 1]
