"""The loss and the forward pass of a training as torch's own functions compute them."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from xfeat.head.data.counter_rng import DROPOUT, FEATURES, LAST_LAYER, dropout_factors, key_of
from xfeat.head.specs import TrainSpec


def reference_loss(logits: Tensor, labels: Tensor, spec: TrainSpec, weights: Tensor | None) -> Tensor:
    """Return the mean loss of a batch of one head, through ``functional.cross_entropy``.

    Source:
        Focal loss: Lin et al., "Focal Loss for Dense Object Detection", 2017, equation 4, for a softmax.
    """
    if not spec.focal_gamma:
        return functional.cross_entropy(logits, labels, weights, label_smoothing=spec.label_smoothing)
    losses = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=spec.label_smoothing)
    probability = functional.softmax(logits, 1).gather(1, labels[:, None]).squeeze(1)
    losses = losses * (1 - probability).pow(spec.focal_gamma)
    if weights is None:
        return losses.mean()
    row_weights = weights[labels]
    return (losses * row_weights).sum() / row_weights.sum()


def reference_logits(model: nn.Sequential, values: Tensor, *, seed: int, step: int) -> Tensor:
    """Return logits in training mode, with the dropout of a step."""
    model.train()
    for index, module in enumerate(model):
        if isinstance(module, nn.Dropout):
            key = key_of(seed, DROPOUT, step, FEATURES if index == 0 else LAST_LAYER)
            values = values * dropout_factors(key, module.p, *values.shape)
        else:
            values = module(values)
    return values
