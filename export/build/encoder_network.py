"""The encoder of an ONNX file beside torch: as it is for the reference, and what follows it in an exported model."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from xfeat.export.build.fused_model import Tail
from xfeat.featurize.backbones.encoder_file import EncoderFile, encoder_of
from xfeat.featurize.backbones.weights import Weights
from xfeat.featurize.engines.onnx_engine import OnnxEngine
from xfeat.featurize.specs import FeatureSpec


class EncoderNetwork(nn.Module):
    """The encoder as the features were computed: its own file, run by onnxruntime on the CPU.

    Args:
        spec: of the features; its backbone is an encoder in an ONNX file.
        weights: that file.

    Raises:
        WeightsError: if it is another one.
        ModelError: if it cannot be used.
    """

    def __init__(self, spec: FeatureSpec, weights: Weights) -> None:
        super().__init__()
        self.encoder = encoder_of(spec, weights)
        self.pooling = spec.pooling
        self._engine = OnnxEngine(spec, weights, device="cpu")

    @property
    def missing_heatmap(self) -> str | None:
        """Why no heatmap can be computed exactly; ``None`` if features are means over places of the image."""
        if self.encoder.kind == "vector":
            return "the encoder returns one vector per image, and no map"
        if self.pooling == "cls":
            return "features are the class token alone, and the gradient reaches no other token of the last layer"
        return "the encoder's tokens do not form a square" if self.encoder.grid is None else None

    def forward(self, pixels: Tensor) -> Tensor:
        """Return features (N, D) of uint8 (N, S, S, 3)."""
        return torch.from_numpy(self._engine.features(pixels.numpy()))


class EncoderTail(nn.Module):
    """From the output of an encoder to all outputs of the model.

    Args:
        encoder: whose output it is.
        pooling: how the output becomes features: ``final``, or of tokens ``cls`` or ``mean``.
        tail: made with ``heatmap`` if :attr:`EncoderNetwork.missing_heatmap` is ``None``.
    """

    def __init__(self, encoder: EncoderFile, pooling: str, tail: Tail) -> None:
        super().__init__()
        self.kind, self.grid, self.prefix_tokens = encoder.kind, encoder.grid, encoder.prefix_tokens
        self.pooling = pooling
        self.tail = tail
        self.eval()

    def forward(self, encoded: Tensor) -> tuple[Tensor, ...]:
        """Return what :meth:`Tail.forward` does, of float32 (N, D), (N, D, h, w) or (N, T, D)."""
        maps = None
        if self.kind == "vector":
            features = encoded
        elif self.kind == "map":
            maps, features = encoded, encoded.mean((2, 3))
        elif self.pooling == "cls":
            features = encoded[:, 0]
        else:
            tokens = encoded[:, self.prefix_tokens :]
            features = tokens.mean(1)
            maps = None if self.grid is None else tokens.transpose(1, 2).reshape(-1, tokens.shape[2], *self.grid)
        return cast(tuple[Tensor, ...], self.tail(features, maps))
