"""The factors of dropout layers, for several heads: what torch draws for each alone, in less time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor, nn

Draw = Callable[[Tensor, float, torch.Generator], None]
"""Fills factors of T batches, float32 (T, B, width), for a rate: :func:`draw_factors` or as it does."""

# Bits of a 64-bit random number that torch makes a double of.
BITS = 53
# Factors that are drawn at a time, 1 MiB, stay near the processor; more batches save no more calls worth counting.
_FACTORS = 1 << 18
_MOST_BATCHES = 16


class Masks:
    """Draws the factors of all dropout layers of several streams, layer after layer, as each head alone would.

    Args:
        models: an untrained head a stream, S in all; their dropout rates may differ, their widths may not.
        dim: number of features.
        draw: fills the factors of one layer.
    """

    def __init__(self, models: Sequence[nn.Sequential], dim: int, draw: Draw) -> None:
        self._draw = draw
        self._rates = [[float(module.p) for module in model if isinstance(module, nn.Dropout)] for model in models]
        self._widths = _dropout_widths(models[0], dim)

    def most_batches(self, streams: int, rows: int) -> int:
        """Return for how many batches of B rows the factors of all layers are drawn at a time."""
        return max(1, min(_MOST_BATCHES, _FACTORS // max(1, streams * rows * sum(self._widths))))

    def draw(
        self, generators: Sequence[torch.Generator], streams: Sequence[int], shape: Sequence[int]
    ) -> list[Tensor | None]:
        """Return float32 (streams, T, B, width) a layer, or ``None`` for one without dropout.

        Args:
            generators: of all S streams.
            streams: those that draw.
            shape: T batches of B rows.
        """
        rates = [[self._rates[stream][layer] for stream in streams] for layer in range(len(self._widths))]
        masks = [
            torch.ones(len(streams), *shape, width) if any(own) else None
            for width, own in zip(self._widths, rates, strict=True)
        ]
        for place, stream in enumerate(streams):
            # Without a rate, torch draws nothing.
            drawn = [(mask[place], own[place]) for mask, own in zip(masks, rates, strict=True) if mask is not None]
            drawn = [(factors, rate) for factors, rate in drawn if rate]
            if len(drawn) == 1:
                self._draw(*drawn[0], generators[stream])
            else:  # batch after batch, layer after layer
                for batch in range(shape[0]):
                    for factors, rate in drawn:
                        self._draw(factors[batch : batch + 1], rate, generators[stream])
        return masks


def draw_factors(out: Tensor, rate: float, generator: torch.Generator) -> None:
    """Draw the factors of T batches, float32 (T, B, width), one after the other as torch's dropout would.

    They are those of ``bernoulli_``, to the bit, in less than half of the time.

    Source:
        ``bernoulli_distribution`` and ``uniform_real_distribution`` in torch's ATen/core/DistributionsHelper.h: one is
        drawn if the lower 53 bits of a 64-bit random number, as a share of 2^53, are less than ``1 - rate``.
    """
    if torch_draws_so():
        bits = torch.empty(out.shape, dtype=torch.int64).random_(generator=generator).bitwise_and_((1 << BITS) - 1)
        torch.lt(bits, kept_below(rate), out=out)
    else:
        for batch in out:
            batch.bernoulli_(1 - rate, generator=generator)
    out.div_(1 - rate)


def kept_below(rate: float) -> int:
    """Return the number below which :data:`BITS` random bits must be for a factor to be kept, as torch has it."""
    return math.ceil((1 - rate) * (1 << BITS))


@cache
def torch_draws_so() -> bool:
    """Try it out: another version may draw otherwise, and on some processors torch leaves it to MKL."""
    expected, found = torch.empty(4096), torch.empty(4096, dtype=torch.int64)
    alone, here = torch.Generator(), torch.Generator()
    expected.bernoulli_(1 - 0.7, generator=alone)
    found.random_(generator=here).bitwise_and_((1 << BITS) - 1)
    same = torch.equal(expected, (found < kept_below(0.7)).float())
    return same and torch.equal(alone.get_state(), here.get_state())


def _dropout_widths(model: nn.Sequential, width: int) -> list[int]:
    widths = []
    for module in model:
        if isinstance(module, nn.Linear):
            width = module.out_features
        elif isinstance(module, nn.Dropout):
            widths.append(width)
    return widths
