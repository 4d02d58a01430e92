"""The training loop: arrays in, a trained head out. No files here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from head.network import build_head
from head.specs import HeadSpec, TrainSpec


class EpochRecord(NamedTuple):
    """One line of history.csv: means over the rows of each part."""

    epoch: int
    train_loss: float
    train_accuracy: float
    valid_loss: float
    valid_accuracy: float


class Rows(NamedTuple):
    """Features float32 (n, D) and labels int64 (n,) of one part."""

    features: Tensor
    labels: Tensor


@dataclass(frozen=True)
class FittedHead:
    """A trained head, with the weights of its best epoch, in evaluation mode.

    Attributes:
        model: from float32 (N, D) to logits (N, C).
        history: one record an epoch.
        best_epoch: the epoch with the lowest validation loss, from 1.
    """

    model: nn.Sequential
    history: list[EpochRecord]
    best_epoch: int

    def logits(self, features: Tensor) -> Tensor:
        """Return logits (N, C) of features (N, D)."""
        with torch.inference_mode():
            return torch.cat([self.model(block) for block in torch.split(features, 4096)])


Progress = Callable[[EpochRecord], None]


def as_rows(features: NDArray[np.floating], labels: NDArray[np.integer]) -> Rows:
    """Copy features (n, D) of any float type and labels (n,) into tensors."""
    return Rows(torch.from_numpy(features.astype(np.float32)), torch.from_numpy(labels.astype(np.int64)))


def fit_head(
    head: HeadSpec, train: TrainSpec, rows: Rows, valid: Rows, *, classes: int, progress: Progress | None = None
) -> FittedHead:
    """Train a head and keep the weights of the epoch with the lowest validation loss.

    The same specs and rows give the same bits on the same machine; the caller's random state is left alone.

    Args:
        head: the layers.
        train: the optimisation.
        rows: training rows.
        valid: validation rows; they choose the epoch and nothing else.
        classes: number of classes C.
        progress: called after each epoch.
    """
    # Adam's moments decay into denormal numbers, which cost 5 to 10 times a normal multiplication.
    torch.set_flush_denormal(True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(train.seed)
        model = build_head(head, dim=rows.features.shape[1], classes=classes)
        criterion = nn.CrossEntropyLoss(weight=_class_weights(train, rows.labels, classes))
        optimizer = torch.optim.Adam(model.parameters(), lr=train.lr, weight_decay=train.weight_decay, fused=True)
        history: list[EpochRecord] = []
        best_state: dict[str, Tensor] = {}
        best_epoch, best_loss = 0, math.inf
        for epoch in range(1, train.epochs + 1):
            train_loss, train_accuracy = _train_epoch(model, criterion, optimizer, rows, train.batch_size)
            valid_loss, valid_accuracy = _evaluate(model, criterion, valid)
            history.append(EpochRecord(epoch, train_loss, train_accuracy, valid_loss, valid_accuracy))
            if valid_loss < best_loss:
                best_epoch, best_loss = epoch, valid_loss
                best_state = {key: value.clone() for key, value in model.state_dict().items()}
            if progress is not None:
                progress(history[-1])
    if best_epoch:  # a loss that was never a number leaves the last weights, and metrics that show it
        model.load_state_dict(best_state)
    return FittedHead(model.eval(), history, best_epoch or train.epochs)


def _train_epoch(
    model: nn.Module, criterion: nn.Module, optimizer: torch.optim.Optimizer, rows: Rows, batch_size: int
) -> tuple[float, float]:
    model.train()
    loss_sum = torch.zeros(())
    correct = torch.zeros((), dtype=torch.int64)
    for batch in _batches(torch.randperm(len(rows.labels)), batch_size):
        labels = rows.labels[batch]
        logits = model(rows.features[batch])
        loss = criterion(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_sum += loss.detach() * len(batch)
        correct += (logits.detach().argmax(1) == labels).sum()
    return float(loss_sum) / len(rows.labels), float(correct) / len(rows.labels)


def _evaluate(model: nn.Module, criterion: nn.Module, rows: Rows) -> tuple[float, float]:
    model.eval()
    with torch.inference_mode():
        logits = model(rows.features)
        return float(criterion(logits, rows.labels)), float((logits.argmax(1) == rows.labels).float().mean())


def _batches(order: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Cut ``order`` into batches; a single row left over joins the last one, since BatchNorm needs two."""
    start = 0
    while start < len(order):
        end = start + batch_size if len(order) - start - batch_size > 1 else len(order)
        yield order[start:end]
        start = end


def _class_weights(train: TrainSpec, labels: Tensor, classes: int) -> Tensor | None:
    if train.class_weight == "none":
        return None
    counts = torch.bincount(labels, minlength=classes)
    return len(labels) / (classes * counts.float())
