"""Counter-based random numbers: the same bits everywhere, and random enough."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from xfeat.head.data.counter_rng import (
    BITS,
    DROPOUT,
    ORDER,
    VIEWS,
    dropout_factors,
    integers,
    key_of,
    mix,
    permutation,
    random_bits,
)

KEY = key_of(7, DROPOUT, 3, 0)


@given(st.integers(0, 2**32 - 1))
def test_a_hash_is_the_published_one(number: int) -> None:
    """Reference: prospector32 in 32-bit arithmetic that overflows, as its author wrote it in C."""
    with np.errstate(over="ignore"):
        x = np.uint32(number)
        x ^= x >> np.uint32(15)
        x *= np.uint32(0x2C1B3C6D)
        x ^= x >> np.uint32(12)
        x *= np.uint32(0x297A2D39)
        x ^= x >> np.uint32(15)
    assert mix(number) == int(x)


def test_numpy_torch_numba_and_plain_python_give_the_same_bits() -> None:
    index = [0, 1, 2, 31, 2**20, 2**32 - 1]
    expected = [random_bits(KEY, number) for number in index]
    assert random_bits(KEY, np.array(index)).tolist() == expected
    assert random_bits(KEY, torch.tensor(index)).tolist() == expected
    numba = pytest.importorskip("numba", reason="numba is not installed: pip install 'xfeat-onnx[fast]'")
    compiled = numba.njit(mix)
    assert [compiled(compiled(number ^ KEY[0]) ^ KEY[1]) for number in index] == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU that torch can use")
def test_a_gpu_gives_the_same_bits() -> None:
    index = torch.arange(100_000)
    assert torch.equal(random_bits(KEY, index.cuda()).cpu(), random_bits(KEY, index))


def test_keys_differ_in_every_part() -> None:
    keys = [
        key_of(seed, what, epoch, part)
        for seed in range(20)
        for what in (1, 2)
        for epoch in range(20)
        for part in (0, 1)
    ]
    assert len(set(keys)) == len(keys)
    assert key_of(2**32 - 1, ORDER, 1) != key_of(0, ORDER, 1)


def test_bits_are_uniform_and_neighbours_are_unrelated() -> None:
    """Kolmogorov-Smirnov over values, chi-square over single bits and over pairs of neighbours and of steps."""
    count = 200_000
    values = random_bits(KEY, torch.arange(count)).numpy()
    assert kstest(values / 2**BITS, "uniform").pvalue > 1e-3
    for bit in range(BITS):
        ones = int((values >> bit & 1).sum())
        assert chisquare([ones, count - ones]).pvalue > 1e-5, bit
    following = random_bits(key_of(7, DROPOUT, 4, 0), torch.arange(count)).numpy()
    for other in (np.roll(values, 1), following):
        cells = np.bincount((values >> 28) * 16 + (other >> 28), minlength=256)
        assert chisquare(cells).pvalue > 1e-5


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_a_permutation_holds_every_number_once(count: int) -> None:
    assert sorted(permutation(key_of(1, ORDER, 1), count).tolist()) == list(range(count))


def test_every_permutation_is_as_likely_as_another() -> None:
    orders = [tuple(permutation(key_of(seed, ORDER, 1), 4).tolist()) for seed in range(4800)]
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    assert chisquare(counts).pvalue > 1e-4


def test_integers_are_uniform() -> None:
    drawn = integers(key_of(3, VIEWS, 1), 7, 70_000).numpy()
    assert chisquare(np.bincount(drawn, minlength=7)).pvalue > 1e-4
    assert drawn.max() == 6


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.4, 2 / 3, 1 - 1e-9])
def test_dropout_drops_its_share_and_scales_the_rest(rate: float) -> None:
    factors = dropout_factors(KEY, rate, 200, 500)
    assert factors.shape == (200, 500)
    assert set(factors.unique().tolist()) <= {0.0, float(torch.tensor(1.0) / (1 - rate))}
    dropped = float((factors == 0).double().mean())
    assert abs(dropped - rate) < 5 * (rate * (1 - rate) / factors.numel()) ** 0.5 + 1e-12
