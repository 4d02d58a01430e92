"""Factors of dropout from torch's own random numbers, drawn by a compiled loop.

Torch's generator on a CPU is the Mersenne Twister, whose numbers follow from its state. Taking the state out, drawing
here and putting it back gives what torch would have given, and leaves the generator where torch would have left it.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xfeat.head.batched import dropout
from xfeat.head.batched.compiled.simd import compiled
from xfeat.head.batched.dropout import BITS

Words = NDArray[np.uint32]

# Of the generator: words of its state, how far apart those are that make a new one, and what is mixed into it.
# Source: Matsumoto and Nishimura, "Mersenne Twister", 1998, MT19937; torch's ATen/core/MT19937RNGEngine.h.
_SIZE, _SHIFT = 624, 397
_UPPER, _LOWER, _MIXED = np.uint32(1 << 31), np.uint32((1 << 31) - 1), np.uint32(0x9908B0DF)
# Where torch keeps what in the bytes of ``Generator.get_state``.
# Source: CPUGeneratorImplStateLegacy in torch's ATen/CPUGeneratorImpl.cpp.
_LEFT, _NEXT, _STATE = slice(8, 12), slice(16, 24), slice(24, 24 + 8 * _SIZE)
# Random words that are in memory at a time, two a factor.
_WORDS = 8192


def draw_factors(out: Tensor, rate: float, generator: torch.Generator) -> None:
    """Do what :func:`xfeat.head.batched.dropout.draw_factors` does, to the bit, in half of the time.

    Args:
        out: float32 (T, B, width), whose values are neighbours in memory.
        rate: share of factors that are 0.
        generator: of the CPU.
    """
    if _torch_draws_so():
        _draw(out, rate, generator)
    else:
        dropout.draw_factors(out, rate, generator)


@cache
def _torch_draws_so() -> bool:
    """Try it out, from both an even and an odd place in the generator's numbers."""
    if not dropout.torch_draws_so():
        return False
    alone, here = torch.Generator(), torch.Generator()
    for count in (5, 700):
        torch.randperm(count, generator=alone)
        torch.randperm(count, generator=here)
        expected, found = torch.empty(1, count, 3), torch.empty(1, count, 3)
        dropout.draw_factors(expected, 0.3, alone)
        _draw(found, 0.3, here)
        if not torch.equal(expected, found) or not torch.equal(alone.get_state(), here.get_state()):
            return False
    return True


def _draw(out: Tensor, rate: float, generator: torch.Generator) -> None:
    state = generator.get_state()
    kept = state.numpy()
    left, following, words = kept[_LEFT].view(np.int32), kept[_NEXT].view(np.uint64), kept[_STATE].view(np.uint64)
    own = words.astype(np.uint32)
    bound = dropout.kept_below(rate)
    above, below = np.uint32(bound >> 32), np.uint32(bound & 0xFFFFFFFF)
    kept_factor = np.float32(float(torch.ones(()) / (1 - rate)))
    place = int(following[0]) if left[0] > 1 else _SIZE
    place = _fill(out.view(-1).numpy(), own, place, above, below, kept_factor)
    words[:], following[0], left[0] = own, place, _SIZE + 1 - place
    generator.set_state(state)


@compiled
def _fill(
    out: NDArray[np.float32], state: Words, place: int, above: np.uint32, below: np.uint32, factor: np.float32
) -> int:
    """Fill ``out`` with the factor where 53 random bits are below a bound, else 0; return the place in the state."""
    words = np.empty(_WORDS, np.uint32)
    for first in range(0, len(out), _WORDS // 2):
        part = out[first : first + _WORDS // 2]
        place = _random_words(state, place, words[: 2 * len(part)])
        for spot in range(len(part)):
            upper, lower = words[2 * spot] & np.uint32((1 << BITS - 32) - 1), words[2 * spot + 1]
            drawn = (upper < above) | ((upper == above) & (lower < below))
            part[spot] = factor if drawn else np.float32(0)
    return place


@compiled
def _random_words(state: Words, place: int, out: Words) -> int:
    done = 0
    while done < len(out):
        if place == _SIZE:
            _renew(state)
            place = 0
        count = min(_SIZE - place, len(out) - done)
        given, drawn = state[place : place + count], out[done : done + count]
        for spot in range(count):
            word = given[spot]
            word ^= word >> np.uint32(11)
            word ^= (word << np.uint32(7)) & np.uint32(0x9D2C5680)
            word ^= (word << np.uint32(15)) & np.uint32(0xEFC60000)
            drawn[spot] = word ^ (word >> np.uint32(18))
        place += count
        done += count
    return place


@compiled
def _renew(state: Words) -> None:
    # Parts of the array under their own names: the loops have no branch, and become vectors.
    following, shifted = state[1:], state[_SHIFT:]
    for spot in range(_SIZE - _SHIFT):
        state[spot] = shifted[spot] ^ _mixed(state[spot], following[spot])
    late, following = state[_SIZE - _SHIFT :], state[_SIZE - _SHIFT + 1 :]
    for spot in range(_SHIFT - 1):
        late[spot] = state[spot] ^ _mixed(late[spot], following[spot])
    state[_SIZE - 1] = state[_SHIFT - 1] ^ _mixed(state[_SIZE - 1], state[0])


@compiled
def _mixed(word: np.uint32, following: np.uint32) -> np.uint32:
    word = (word & _UPPER) | (following & _LOWER)
    return (word >> np.uint32(1)) ^ ((np.uint32(0) - (word & np.uint32(1))) & _MIXED)
