"""Rounding weights one after the other, each making up for the error of those before it."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray

from xfeat.export.quantization.onnx_graph import attribute

Array = NDArray[Any]

# Numbers of patches looked at: many times the inputs of the widest layer, and little enough for memory.
_ROWS = 8192
_NUMBERS = 40_000_000
# Added to the diagonal, as a share of its mean: directions that these images hardly reach are left alone.
# Source: Frantar et al. 2022 (arXiv:2210.17323), section 3.3.
_DAMPING = 0.01
# Columns whose errors are passed on to all later ones at once, which is one matrix product instead of many.
_BLOCK = 64
_LARGEST = 127


def rounded_in_order(weight: Array, scale: Array, node: onnx.NodeProto, inputs: Array) -> NDArray[np.int8]:
    """Return int8 weights that change what the convolution makes of its inputs by little, rather than by themselves.

    An input's weight is rounded to the nearest level; the error that this makes in the output is then taken over by the
    weights not rounded yet, as far as their inputs go along with that one. The means of inputs do not count: the bias
    takes them.

    Args:
        weight: float (O, I, kh, kw).
        scale: float (O,), what a level is worth.
        node: the convolution.
        inputs: float32 (N, C, h, w), as rounded so far.

    Source: GPTQ, Frantar et al. 2022 (arXiv:2210.17323), algorithm 1; here with the most used inputs first.
    """
    groups = attribute(node, "group", 1)
    rows = weight.reshape(groups, len(weight) // groups, -1).astype(np.float64)
    steps = scale.astype(np.float64).reshape(groups, -1)
    moments = _second_moments(node, inputs, weight.shape[2:])
    return levels_in_order(rows, steps, moments, _DAMPING, _LARGEST).reshape(weight.shape)


def levels_in_order(rows: Array, steps: Array, moments: Array, damping: float, largest: int) -> NDArray[np.int8]:
    """Return levels int8 (G, O, K) of weights, each making up for the errors of those whose inputs are used more.

    Args:
        rows: float64 (G, O, K), weights of O outputs for K inputs in G groups.
        steps: float64 (G, O), what a level is worth.
        moments: float64 (G, K, K), covariances of the inputs.
        damping: added to their diagonal, as a share of its mean.
        largest: levels lie between this and its negative.
    """
    used = np.diagonal(moments, axis1=1, axis2=2)
    moments = moments + np.eye(moments.shape[1]) * (damping * used.mean(1) + 1e-12).reshape(-1, 1, 1)
    order = np.argsort(-used, axis=1, kind="stable")[:, None, :]
    moments = np.take_along_axis(np.take_along_axis(moments, order.transpose(0, 2, 1), 1), order, 2)
    levels = np.empty(rows.shape, np.int8)
    found = _in_order(np.take_along_axis(rows, order, 2), steps, moments, largest)
    np.put_along_axis(levels, np.broadcast_to(order, rows.shape), found.astype(np.int8), 2)
    return levels


def _in_order(rows: Array, steps: Array, moments: Array, largest: int) -> Array:
    """Return levels (G, O, K) of weights (G, O, K), from the first input on, for moments (G, K, K)."""
    rows = rows.copy()
    levels = np.empty_like(rows)
    # The upper factor of the inverse holds, row by row, how an input's error is best shared among those behind it.
    share = np.linalg.cholesky(np.linalg.inv(moments)).transpose(0, 2, 1)
    count = rows.shape[2]
    for first in range(0, count, _BLOCK):
        last = min(first + _BLOCK, count)
        errors = np.empty((*rows.shape[:2], last - first))
        for place in range(first, last):
            level = np.rint(rows[:, :, place] / steps).clip(-largest, largest)
            error = (rows[:, :, place] - level * steps) / share[:, place, place, None]
            rows[:, :, place:last] -= error[:, :, None] * share[:, None, place, place:last]
            levels[:, :, place], errors[:, :, place - first] = level, error
        rows[:, :, last:] -= errors @ share[:, first:last, last:]
    return levels


def _second_moments(node: onnx.NodeProto, inputs: Array, kernel: tuple[int, ...]) -> Array:
    """Return covariances (G, K, K) of what a convolution's weights are multiplied with, float64."""
    groups = attribute(node, "group", 1)
    patches = _patches(node, inputs, kernel).reshape(-1, groups, inputs.shape[1] // groups * int(np.prod(kernel)))
    patches = patches.transpose(1, 0, 2)
    patches = patches - patches.mean(1, keepdims=True)
    return cast(Array, (patches.transpose(0, 2, 1) @ patches).astype(np.float64) / patches.shape[1])


def _patches(node: onnx.NodeProto, inputs: Array, kernel: tuple[int, ...]) -> Array:
    """Return what a convolution sees (R, C, kh, kw) at random places."""
    top, left, bottom, right = attribute(node, "pads", (0, 0, 0, 0))
    down, across = attribute(node, "strides", (1, 1))
    padded = np.pad(inputs, ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, (2, 3))[:, :, ::down, ::across]
    images, channels, height, width = windows.shape[:4]
    places = images * height * width
    most = min(_ROWS, max(1, _NUMBERS // (channels * int(np.prod(kernel)))))
    chosen = np.arange(places) if places <= most else np.random.default_rng(0).integers(0, places, most)
    image, y, x = np.unravel_index(chosen, (images, height, width))
    return windows[image, :, y, x]
