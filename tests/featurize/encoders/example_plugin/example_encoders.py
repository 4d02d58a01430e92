"""An encoder for xfeat: how strong the edges of each colour are, in 16 directions."""

import math

import torch
from torch import nn

from xfeat import EncoderPlugin


class Edges(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        angles = torch.arange(16) * math.pi / 16
        rows, columns = torch.meshgrid(torch.linspace(-1, 1, 5), torch.linspace(-1, 1, 5), indexing="ij")
        kernels = torch.stack([rows * angle.cos() + columns * angle.sin() for angle in angles])
        self.register_buffer("kernels", kernels[:, None].repeat(3, 1, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # A map (N, 48, h, w): xfeat averages it, and shows heatmaps.
        return nn.functional.conv2d(images, self.kernels, stride=4, groups=3).abs()


def edges() -> EncoderPlugin:
    return EncoderPlugin(module=Edges, size=96, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), crop=0.05)
