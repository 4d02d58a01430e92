"""The folded head against the original head, and its gradients against autograd."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from xfeat.export.build.dense_head import DenseHead
from xfeat.featurize.errors import SpecError
from xfeat.head.specs import HeadSpec
from xfeat.head.training.network import build_head

DIM, CLASSES = 24, 3


def random_head(hidden: tuple[int, ...], classes: int = CLASSES) -> nn.Sequential:
    """Return a head with random BatchNorm statistics and weights."""
    torch.manual_seed(3)
    head = build_head(HeadSpec(hidden=hidden), dim=DIM, classes=classes)
    for module in head.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.2, 3)
            nn.init.uniform_(module.weight, -2, 2)
            nn.init.normal_(module.bias)
    return head.eval()


heads = pytest.mark.parametrize("hidden", [(), (16,), (32, 8), (16, 16, 16)])


@heads
def test_a_folded_head_gives_the_logits_of_the_head(hidden: tuple[int, ...]) -> None:
    head = random_head(hidden)
    features = torch.randn(20, DIM)
    torch.testing.assert_close(DenseHead(head)(features)[0], head(features), atol=2e-5, rtol=1e-5)


@heads
def test_a_folded_head_has_no_batchnorm_and_one_linear_per_layer(hidden: tuple[int, ...]) -> None:
    kinds = [type(module) for module in DenseHead(random_head(hidden)).layers]
    assert kinds.count(nn.Linear) == len(hidden) + 1
    assert kinds.count(nn.ReLU) == len(hidden)
    assert len(kinds) == 2 * len(hidden) + 1


@heads
def test_forward_gradients_are_those_of_autograd(hidden: tuple[int, ...]) -> None:
    head = random_head(hidden).double()
    features = torch.randn(5, DIM, dtype=torch.float64, requires_grad=True)
    logits = head(features)
    expected = torch.stack(
        [torch.autograd.grad(logits[:, c].sum(), features, retain_graph=True)[0] for c in range(CLASSES)], dim=1
    )
    _, found = DenseHead(head)(features.detach().float())
    torch.testing.assert_close(found.expand_as(expected).double(), expected, atol=1e-5, rtol=1e-5)


def test_a_head_with_an_unknown_layer_is_refused() -> None:
    with pytest.raises(SpecError, match="cannot be exported"):
        DenseHead(nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2)))


def test_a_head_that_ends_in_a_batchnorm_is_refused() -> None:
    with pytest.raises(SpecError, match="end with a Linear"):
        DenseHead(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval())
