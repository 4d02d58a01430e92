"""Counter-based random numbers: each is a hash of a seed, a purpose, a time and an index. Nothing has a state.

Heads that train side by side therefore draw what each would draw alone, in any order and on any device. The arithmetic
is that of 64-bit integers which never overflow, so that the same functions run on Python's ints, numpy arrays, torch
tensors on a CPU or a GPU, and under numba, with the same bits.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

# Part of what makes a sweep or a cross-validation the same one: other numbers would be another one.
GENERATOR = "prospector32 x 2"

# What numbers are for; the first part of a key behind the seed.
ORDER, VIEWS, DROPOUT = 1, 2, 3
# Numbers of the dropout layers in their keys: that before the last layer, and that of the features.
LAST_LAYER, FEATURES = 0, 1

BITS = 32
_MASK = (1 << BITS) - 1
# Any two different numbers do; these are the first binary digits of pi.
_START = 0x243F6A88, 0x85A308D3

Key = tuple[int, int]


def mix(number: Any) -> Any:
    """Hash numbers from 0 to 2^32 - 1, one to one.

    Source:
        "prospector32" of Chris Wellons' hash-prospector, found by a search for low bias. Both factors are below 2^31,
        so that no product exceeds 63 bits.
    """
    number = number ^ (number >> 15)
    number = (number * 0x2C1B3C6D) & 0xFFFFFFFF
    number = number ^ (number >> 12)
    number = (number * 0x297A2D39) & 0xFFFFFFFF
    return number ^ (number >> 15)


def key_of(*parts: Any) -> Key:
    """Return the key of a stream of numbers, from the seed, the purpose and counts such as epoch, step and layer."""
    first, second = _START
    for part in parts:
        first, second = mix(first ^ (part & _MASK)), mix(second ^ (part & _MASK))
    return first, second


def random_bits(key: Key, index: Any) -> Any:
    """Return the numbers of a stream at some indices (0 to 2^32 - 1): uniform from 0 to 2^32 - 1."""
    return mix(mix(index ^ key[0]) ^ key[1])


def permutation(key: Key, count: int) -> Tensor:
    """Return 0 to ``count`` - 1 in a random order, int64."""
    bits: Tensor = random_bits(key, torch.arange(count))
    return bits.argsort(stable=True)


def integers(key: Key, high: int, count: int) -> Tensor:
    """Return int64 (count,), uniform from 0 to ``high`` - 1."""
    bits: Tensor = random_bits(key, torch.arange(count))
    return (bits * high) >> BITS


def keep_below(rate: float) -> int:
    """Return the number below which random bits must be for dropout at this rate to keep a value."""
    return math.ceil((1 - rate) * (1 << BITS))


def dropout_factors(key: Key, rate: float, rows: int, width: int) -> Tensor:
    """Return the factors of a dropout layer, float32 (rows, width): 0, or 1 / (1 - rate)."""
    bits: Tensor = random_bits(key, torch.arange(rows * width))
    return (bits < keep_below(rate)).float().div_(1 - rate).view(rows, width)
