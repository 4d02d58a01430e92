"""The layers of a stack, forwards and backwards, against torch's own modules and autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from xfeat.head.batched.layers import Layer, Linear, Mask, Normalization, Rectifier

HEADS, ROWS, WIDTH = 3, 7, 5


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def normalizations() -> list[nn.BatchNorm1d]:
    modules = [nn.BatchNorm1d(WIDTH) for _ in range(HEADS)]
    for seed, module in enumerate(modules):
        module.weight.data, module.bias.data = drawn(WIDTH, seed=seed), drawn(WIDTH, seed=10 + seed)
        module.running_mean, module.running_var = drawn(WIDTH, seed=20 + seed), drawn(WIDTH, seed=30 + seed).abs()
    return modules


def stacked(modules: list[nn.BatchNorm1d] | list[nn.Linear]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return state and, full of other numbers, gradients."""
    states = [module.state_dict() for module in modules]
    state = {name: torch.stack([own[name] for own in states]) for name in states[0]}
    return state, {name: torch.full_like(state[name], 9.0) for name in ("weight", "bias")}


def assert_as_autograd(
    layer: Layer, modules: list[nn.BatchNorm1d] | list[nn.Linear], gradients: dict[str, Tensor], values: Tensor
) -> None:
    """Reference: each module alone, in training mode."""
    found = layer.train(values)
    upstream = drawn(*found.shape, seed=5)
    to_inputs = layer.back(upstream)
    for head, module in enumerate(modules):
        alone = values[head % len(values)].clone().requires_grad_()
        expected = module(alone)
        torch.testing.assert_close(found[head], expected)
        wanted = torch.autograd.grad(expected, [module.weight, module.bias, alone], upstream[head])
        torch.testing.assert_close((gradients["weight"][head], gradients["bias"][head]), wanted[:2])
        torch.testing.assert_close(to_inputs[head], wanted[2])


@pytest.mark.parametrize("count", [HEADS, 1])
def test_normalization_and_its_gradients_are_those_of_torch(count: int) -> None:
    """``count`` is 1 where all heads have the same rows."""
    modules = normalizations()
    state, gradients = stacked(modules)
    layer = Normalization(modules[0], state, gradients, first=False)
    assert_as_autograd(layer, modules, gradients, 3 * drawn(count, ROWS, WIDTH) + 1)
    for head, module in enumerate(modules):  # the running statistics have followed
        for name, values in module.state_dict().items():
            torch.testing.assert_close(state[name][head], values)


def test_the_first_normalization_leaves_out_what_nobody_asks_for() -> None:
    modules = normalizations()
    results = []
    for first in (False, True):
        state, gradients = stacked(modules)
        layer = Normalization(modules[0], state, gradients, first=first)
        layer.train(drawn(HEADS, ROWS, WIDTH))
        layer.back(drawn(HEADS, ROWS, WIDTH, seed=1))
        results.append(gradients)
    torch.testing.assert_close(results[0], results[1])


def test_a_linear_layer_and_its_gradients_are_those_of_torch() -> None:
    torch.manual_seed(0)
    modules = [nn.Linear(WIDTH, 4) for _ in range(HEADS)]
    state, gradients = stacked(modules)
    assert_as_autograd(Linear(state, gradients), modules, gradients, drawn(HEADS, ROWS, WIDTH))


def test_evaluation_is_that_of_torch() -> None:
    """Reference: each module alone, in evaluation mode."""
    torch.manual_seed(0)
    values = drawn(1, ROWS, WIDTH)
    norms, lines = normalizations(), [nn.Linear(WIDTH, 4) for _ in range(HEADS)]
    state, gradients = stacked(norms)
    normal = Normalization(norms[0], state, gradients, first=True).evaluate(values, state)
    line_state, line_gradients = stacked(lines)
    found = Linear(line_state, line_gradients).evaluate(normal, line_state)
    for head in range(HEADS):
        torch.testing.assert_close(found[head], lines[head](norms[head].eval()(values[0])))


def test_rectifier_and_mask_let_the_gradient_through_where_the_values_went() -> None:
    """Reference: autograd through relu and a product."""
    values, factors = drawn(HEADS, ROWS, WIDTH).requires_grad_(), (drawn(1, ROWS, WIDTH, seed=2) > 0) * 1.5
    expected = values.relu() * factors
    upstream = drawn(HEADS, ROWS, WIDTH, seed=3)
    rectifier, mask = Rectifier(), Mask()
    mask.factors = factors
    torch.testing.assert_close(mask.train(rectifier.train(values.detach())), expected)
    [wanted] = torch.autograd.grad(expected, [values], upstream)
    torch.testing.assert_close(rectifier.back(mask.back(upstream)), wanted)
    mask.factors = None
    assert mask.train(values) is values
    assert torch.equal(mask.back(upstream), upstream)
