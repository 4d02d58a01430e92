"""Rounding weights one after the other, each correcting the error of those before it (GPTQ)."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray

from xfeat.export.build.graph import attribute

Array = NDArray[Any]

# Patches used: many times the inputs of the widest layer. The second limit is for memory.
_MAX_PATCHES = 8192
_MAX_VALUES = 40_000_000
# Added to the diagonal, as a share of its mean, so that rarely used directions change little.
# Source: Frantar et al. 2022 (arXiv:2210.17323), section 3.3.
_DAMPING = 0.01


def gptq_round(weight: Array, scale: Array, node: onnx.NodeProto, inputs: Array) -> NDArray[np.int8]:
    """Return int8 weights that change the output of a convolution as little as possible.

    Weights are rounded one input after the other, the most used input first. The rounding error of each is compensated
    by the weights that are not rounded yet, as far as their inputs are correlated. Means of inputs do not count: the
    bias compensates them.

    Args:
        weight: float (O, I, kh, kw).
        scale: float (O,), the size of one quantisation step.
        node: the convolution.
        inputs: float32 (N, C, h, w), already quantised.

    Source: GPTQ, Frantar et al. 2022 (arXiv:2210.17323), algorithm 1.
    """
    groups = attribute(node, "group", 1)
    columns = weight.reshape(groups, len(weight) // groups, -1).transpose(0, 2, 1).astype(np.float64)  # (G, K, O)
    steps = scale.astype(np.float64).reshape(groups, -1)
    covariance = _input_covariance(node, inputs, weight.shape[2:])
    variance = np.diagonal(covariance, axis1=1, axis2=2)
    covariance = covariance + np.eye(columns.shape[1]) * (_DAMPING * variance.mean(1) + 1e-12).reshape(-1, 1, 1)
    order = np.argsort(-variance, axis=1, kind="stable")[:, :, None]
    columns = np.take_along_axis(columns, order, 1)
    covariance = np.take_along_axis(np.take_along_axis(covariance, order, 1), order.transpose(0, 2, 1), 2)
    # Row i of the upper Cholesky factor of the inverse says how the later weights best share the error of weight i.
    share = np.linalg.cholesky(np.linalg.inv(covariance)).transpose(0, 2, 1)
    for place in range(columns.shape[1]):
        level = np.rint(columns[:, place] / steps).clip(-127, 127)
        error = (columns[:, place] - level * steps) / share[:, place, place, None]
        columns[:, place + 1 :] -= share[:, place, place + 1 :, None] * error[:, None]
        columns[:, place] = level
    levels = np.empty_like(columns)
    np.put_along_axis(levels, order, columns, 1)
    return levels.transpose(0, 2, 1).reshape(weight.shape).astype(np.int8)


def _input_covariance(node: onnx.NodeProto, inputs: Array, kernel: tuple[int, ...]) -> Array:
    """Return the covariance (G, K, K), float64, of the values that the weights of a convolution multiply."""
    groups = attribute(node, "group", 1)
    patches = _patches(node, inputs, kernel).reshape(-1, groups, inputs.shape[1] // groups * int(np.prod(kernel)))
    patches = patches.transpose(1, 0, 2)
    patches = patches - patches.mean(1, keepdims=True)
    return cast(Array, (patches.transpose(0, 2, 1) @ patches).astype(np.float64) / patches.shape[1])


def _patches(node: onnx.NodeProto, inputs: Array, kernel: tuple[int, ...]) -> Array:
    """Return the input patches (R, C, kh, kw) of a convolution at random places."""
    top, left, bottom, right = attribute(node, "pads", (0, 0, 0, 0))
    down, across = attribute(node, "strides", (1, 1))
    padded = np.pad(inputs, ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, (2, 3))[:, :, ::down, ::across]
    images, channels, height, width = windows.shape[:4]
    count = images * height * width
    limit = min(_MAX_PATCHES, max(1, _MAX_VALUES // (channels * int(np.prod(kernel)))))
    chosen = np.arange(count) if count <= limit else np.random.default_rng(0).integers(0, count, limit)
    image, y, x = np.unravel_index(chosen, (images, height, width))
    return windows[image, :, y, x]
