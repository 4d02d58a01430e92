"""Several heads of one shape as one tensor program: each layer holds the weights of all of them, stacked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

State = dict[str, Tensor]


class HeadStack:
    """K heads of one shape, computed side by side; none knows of the others.

    The layers are read off the modules that :func:`head.network.build_head` built, so that what a head is stays
    written in one place.

    Args:
        models: K heads with layers of the same sizes; only their dropout may differ.

    Attributes:
        models: as given; their own weights are not touched.
        state: the K state dicts, stacked: name to (K, …).
        trained: names of the entries of ``state`` behind :attr:`parameters`.
    """

    def __init__(self, models: Sequence[nn.Sequential]) -> None:
        self.models = list(models)
        states = [model.state_dict() for model in models]
        self.state: State = {name: torch.stack([state[name] for state in states]) for name in states[0]}
        self.trained = [name for name, _ in models[0].named_parameters()]
        self._prepare()

    def __len__(self) -> int:
        return len(self.models)

    def keep(self, heads: Sequence[int]) -> None:
        """Go on with some of the heads, given by their present numbers."""
        self.models = [self.models[head] for head in heads]
        self.state = {name: values.detach()[list(heads)] for name, values in self.state.items()}
        self._prepare()

    @property
    def parameters(self) -> list[Tensor]:
        """The stacked tensors that an optimizer moves."""
        return [self.state[name] for name in self.trained]

    def train_logits(self, features: Tensor, masks: Sequence[Tensor | None]) -> Tensor:
        """Return logits (K, B, C) with the statistics of the batch, which the running ones follow.

        Args:
            features: float32 (B, K, D), each head's own rows.
            masks: per dropout layer float32 (B, K, width), the factors of its inputs, or ``None`` for no dropout.
        """
        rest = iter(masks)
        return self._run(self.state, features, training=True, masks=rest)

    def logits(self, features: Tensor, state: State | None = None) -> Tensor:
        """Return logits (K, N, C) of the same features (N, D) for all heads, as in evaluation mode.

        Args:
            features: float32.
            state: instead of the stack's own, such as an average of it.
        """
        heads = len(self)
        # The rows are copied once a head: few at a time keep that small.
        with torch.no_grad():
            blocks = [
                self._run(state or self.state, block.unsqueeze(1).expand(-1, heads, -1), training=False, masks=iter(()))
                for block in torch.split(features, 256)
            ]
        return torch.cat(blocks, 1)

    def _prepare(self) -> None:
        for name in self.trained:
            self.state[name].requires_grad_()
        # Made once: memory of this size comes fresh from the system each time it is asked for, and a thread would
        # spend as long on getting it as on filling it.
        self._gradients = {name: torch.empty_like(self.state[name].detach()) for name in self.trained}

    def _run(self, state: State, values: Tensor, *, training: bool, masks: Any) -> Tensor:
        for index, module in enumerate(self.models[0]):
            if isinstance(module, nn.BatchNorm1d):
                values = _batch_norm(values, _entries(state, index), module.eps, training=training)
            elif isinstance(module, nn.Linear):
                weight, bias = state[f"{index}.weight"], state[f"{index}.bias"]
                values = _StackedLinear.apply(values, weight, bias, self._gradients[f"{index}.weight"])
            elif isinstance(module, nn.ReLU):
                values = values.relu()
            elif isinstance(module, nn.Dropout):
                mask = next(masks) if training else None
                values = values if mask is None else values * mask
            else:
                raise TypeError(f"a stack of heads has no {type(module).__name__}")
        return values.transpose(0, 1)


def _entries(state: State, index: int) -> State:
    prefix = f"{index}."
    return {name.removeprefix(prefix): values for name, values in state.items() if name.startswith(prefix)}


def _batch_norm(values: Tensor, entries: State, eps: float, *, training: bool) -> Tensor:
    if training:
        entries["num_batches_tracked"] += 1
    # A channel of one head is a channel of the stack: statistics run over the rows alone.
    flat = functional.batch_norm(
        values.reshape(len(values), -1),
        entries["running_mean"].view(-1),
        entries["running_var"].view(-1),
        entries["weight"].view(-1),
        entries["bias"].view(-1),
        training,
        eps=eps,
    )
    return flat.view(values.shape)


class _StackedLinear(torch.autograd.Function):
    """K linear layers: (B, K, D), weights (K, H, D) and biases (K, H) to (B, K, H).

    The gradient of the weights is written into ``gradient``, of their shape.

    Autograd's own gradient of a batched product lies transposed and is copied once more; this one lies as the weights
    do. Weights times transposed rows is the faster order of the two for few rows: see docs/decisions/0040.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.gradient = gradient
        return torch.baddbmm(bias.unsqueeze(2), weight, inputs.permute(1, 2, 0)).permute(2, 0, 1).contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        inputs, weight = ctx.saved_tensors
        upstream = gradients[0].transpose(0, 1)
        to_inputs = torch.bmm(upstream, weight).transpose(0, 1).contiguous()
        torch.bmm(upstream.transpose(1, 2), inputs.transpose(0, 1), out=ctx.gradient)
        return to_inputs, ctx.gradient, upstream.sum(1), None
