"""Dropout factors drawn for many heads, held against torch's own."""

from __future__ import annotations

import pytest
import torch

from xfeat.head.batched import dropout as batched_masks
from xfeat.head.batched.dropout import Masks, draw_factors
from xfeat.head.specs import HeadSpec
from xfeat.head.training.network import build_head


@pytest.mark.parametrize("rate", [0.4, 0.5, 2 / 3, 0.001, 1 - 1e-9])
@pytest.mark.parametrize("alike", [True, False])
def test_factors_are_torchs_to_the_bit_and_the_generator_goes_on_as_it_would(
    rate: float, alike: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: ``Tensor.bernoulli_``; also where torch is found to draw otherwise than it does here."""
    if not alike:
        monkeypatch.setattr(batched_masks, "torch_draws_so", lambda: False)
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    for shape in ((2, 32, 1280), (1, 7, 1), (3, 53, 12)):
        expected = torch.stack(
            [torch.empty(shape[1:]).bernoulli_(1 - rate, generator=generators[0]) for _ in range(shape[0])]
        )
        drawn = torch.empty(shape)
        draw_factors(drawn, rate, generators[1])
        assert torch.equal(drawn, expected.div_(1 - rate))
    assert torch.equal(generators[0].get_state(), generators[1].get_state())


def test_a_torch_that_draws_otherwise_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batched_masks, "BITS", 52)
    batched_masks.torch_draws_so.cache_clear()
    try:
        assert not batched_masks.torch_draws_so()
    finally:
        batched_masks.torch_draws_so.cache_clear()


def test_each_stream_draws_what_its_modules_would_in_their_order() -> None:
    """Reference: ``nn.Dropout`` in training mode, on ones; a layer without dropout draws nothing."""
    specs = [HeadSpec(hidden=(6,), feature_dropout=first, dropout=last) for first, last in ((0.2, 0.5), (0.1, 0.0))]
    models = [build_head(spec, dim=9, classes=3) for spec in specs]
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    drawn = Masks(models, 9, draw_factors).draw(generators, [1, 0], (3, 4))
    for place, stream in enumerate((1, 0)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream + 1)
            dropouts = [module for module in models[stream] if isinstance(module, torch.nn.Dropout)]
            for batch in range(3):
                for mask, dropout, width in zip(drawn, dropouts, (9, 6), strict=True):
                    assert mask is not None
                    assert torch.equal(mask[place, batch], dropout(torch.ones(4, width)))
