"""The training loop: rows in, a trained head out."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from xfeat.featurize.errors import DivergedError
from xfeat.head.data.counter_rng import DROPOUT, FEATURES, LAST_LAYER, dropout_factors, key_of
from xfeat.head.data.rows import AnyRows, Rows, collected, single_batches
from xfeat.head.specs import HeadSpec, TrainSpec
from xfeat.head.training.adam import StackedAdam
from xfeat.head.training.history import EpochRecord
from xfeat.head.training.loss import TrainingLoss, balanced_weights, validation_figures
from xfeat.head.training.network import build_head

logger = logging.getLogger(__name__)

# Matrices of so few rows are multiplied faster by one thread than two threads can be woken.
_ROWS_WORTH_THREADS = 512


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
        return self.logits_of(Rows(features, torch.empty(len(features))))

    def logits_of(self, rows: AnyRows) -> Tensor:
        """Return logits (n, C) of the unchanged images of rows."""
        with torch.inference_mode():
            return collected((self.model(block) for block in rows.clean_blocks()), len(rows.labels))


Progress = Callable[[EpochRecord], None]


def fit_head(
    head: HeadSpec,
    train: TrainSpec,
    rows: AnyRows,
    valid: AnyRows | None,
    *,
    classes: int,
    class_weights: Tensor | None = None,
    progress: Progress | None = None,
) -> FittedHead:
    """Train a head and keep the weights of the epoch with the lowest validation loss.

    The same specs and rows give the same bits on the same machine; the caller's random state and floating-point mode
    are left as they are.

    Args:
        head: the layers.
        train: the optimisation.
        rows: training rows; of several views, a random one of each row is seen in each epoch.
        valid: validation rows, of which the clean view counts; they choose the epoch and nothing else. Without them the
            last epoch is kept.
        classes: number of classes C.
        class_weights: float32 (C,), instead of those that ``train`` asks for. The biases of the last layer then start
            at the logarithms of the weighted class frequencies: a few steps could not move them that far.
        progress: called after each epoch.

    Raises:
        DivergedError: if the loss is not a number from the first epoch on, since the learning rate is too high.
    """
    offsets = None if class_weights is None else _log_frequencies(rows.labels, class_weights)
    if class_weights is None and train.class_weight == "balanced":
        class_weights = balanced_weights(rows.labels, classes)
    best = BestEpoch(train, validated=valid is not None)
    with _quick_arithmetic(train.batch_size):
        training = _Training(head, train, rows, classes, class_weights, offsets)
        for epoch in range(1, train.epochs + 1):
            best.add(
                EpochRecord(epoch, *training.run_epoch(epoch), *_evaluate(training.result, valid, class_weights)),
                training.result.state_dict(),
            )
            if progress is not None:
                progress(best.history[-1])
            if best.is_last():
                break
    return best.fitted(training.result)


class BestEpoch:
    """The epochs of a head in training, and the weights of the best one.

    Args:
        spec: how it is trained.
        validated: whether the validation loss chooses the epoch; otherwise it is the last one.
    """

    def __init__(self, spec: TrainSpec, *, validated: bool) -> None:
        self.spec, self._validated = spec, validated
        self.history: list[EpochRecord] = []
        self._epoch, self._loss = 0, math.inf
        self._state: dict[str, Tensor] = {}

    def add(self, record: EpochRecord, state: Mapping[str, Tensor]) -> None:
        """Add an epoch; its weights are copied if it is the best so far."""
        self.history.append(record)
        if record.valid_loss < self._loss or (not self._validated and math.isfinite(record.train_loss)):
            self._epoch, self._loss = record.epoch, record.valid_loss
            self._state = {name: values.detach().clone() for name, values in state.items()}

    def is_last(self) -> bool:
        """Tell whether training stops here: the patience is over, or the loss is no number."""
        waited = len(self.history) - self._epoch
        return not math.isfinite(self.history[-1].train_loss) or 0 < self.spec.patience <= waited

    def fitted(self, model: nn.Sequential) -> FittedHead:
        """Load the weights of the best epoch into a model; warn if the last epoch's loss is not a number.

        Raises:
            DivergedError: if no epoch's was.
        """
        last, rate = self.history[-1], self.spec.lr
        if not self._epoch:
            raise DivergedError(
                "training diverged: the loss is not a number from the first epoch on",
                expected="a lower learning rate, and finite features",
                found=f"learning rate {rate:g}",
                fix="--lr 0.0005, or check the features with xfeat verify",
            )
        if not math.isfinite(last.train_loss):
            logger.warning(
                "training diverged in epoch %d; epoch %d, the best before it, is kept: "
                "the learning rate %g is too high",
                last.epoch,
                self._epoch,
                rate,
            )
        model.load_state_dict(self._state)
        return FittedHead(model.eval(), self.history, self._epoch)


class _Training:
    """A head between its first and its last step."""

    def __init__(
        self,
        head: HeadSpec,
        spec: TrainSpec,
        rows: AnyRows,
        classes: int,
        weights: Tensor | None,
        offsets: Tensor | None = None,
    ) -> None:
        self.spec, self.rows, self._steps = spec, rows, 0
        self.model = build_head(head, dim=rows.dim, classes=classes, seed=spec.seed)
        if offsets is not None:
            cast(nn.Linear, self.model[-1]).bias.data += offsets
        self.loss = TrainingLoss([spec], torch.ones(1, classes) if weights is None else weights.unsqueeze(0))
        self.parameters = list(self.model.parameters())
        self._as_one = [values.detach().unsqueeze(0) for values in self.parameters]
        self.optimizer = StackedAdam(self._as_one, [spec.weight_decay])
        self.average: AveragedModel | None = None
        if spec.average:
            average = get_ema_multi_avg_fn(spec.average)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(self.model, multi_avg_fn=average, use_buffers=True)

    @property
    def result(self) -> nn.Sequential:
        """What would be kept if this were the last epoch."""
        return self.model if self.average is None else cast(nn.Sequential, self.average.module)

    def run_epoch(self, epoch: int) -> tuple[float, float]:
        """Pass once over the rows in a new order; return the mean loss and accuracy on the way."""
        rate = learning_rate(self.spec, epoch)
        self.model.train()
        count = len(self.rows.labels)
        loss_sum, correct = torch.zeros(()), torch.zeros((), dtype=torch.int64)
        for features, labels in single_batches(self.rows, self.spec.batch_size, self.spec.seed, epoch):
            logits = self._training_logits(features)
            loss = self.loss(logits.unsqueeze(0), labels.unsqueeze(0)).squeeze(0)
            gradients = torch.autograd.grad(loss, self.parameters)
            self.optimizer.step(self._as_one, [each.unsqueeze(0) for each in gradients], [rate])
            if self.average is not None:
                self.average.update_parameters(self.model)
            loss_sum += loss.detach() * len(labels)
            correct += (logits.detach().argmax(1) == labels).sum()
        return float(loss_sum) / count, float(correct) / count

    def _training_logits(self, values: Tensor) -> Tensor:
        """Return logits (B, C) in training mode, with dropout from the counter-based random numbers."""
        for index, module in enumerate(self.model):
            if not isinstance(module, nn.Dropout):
                values = module(values)
            elif module.p:
                key = key_of(self.spec.seed, DROPOUT, self._steps, FEATURES if index == 0 else LAST_LAYER)
                values = values * dropout_factors(key, module.p, *values.shape)
        self._steps += 1
        return values


def _log_frequencies(labels: Tensor, weights: Tensor) -> Tensor:
    """Return the logarithms of the weighted class frequencies, with a mean of 0: float32 (C,)."""
    logs = (torch.bincount(labels, minlength=len(weights)).clamp(min=1) * weights).clamp(min=1e-30).log()
    return logs - logs.mean()


def learning_rate(spec: TrainSpec, epoch: int) -> float:
    """Return the learning rate of an epoch, from 1.

    Source:
        Loshchilov and Hutter, "SGDR", 2017, equation 5, without restarts and with a minimum of 0.
    """
    if spec.schedule == "constant":
        return spec.lr
    return 0.5 * spec.lr * (1 + math.cos(math.pi * (epoch - 1) / spec.epochs))


def _evaluate(model: nn.Module, rows: AnyRows | None, weights: Tensor | None) -> tuple[float, float]:
    if rows is None:
        return math.nan, math.nan
    model.eval()
    with torch.inference_mode():
        logits = collected((model(block) for block in rows.clean_blocks()), len(rows.labels))
        return validation_figures(logits, rows.labels, weights)


@contextmanager
def _quick_arithmetic(batch_size: int) -> Iterator[None]:
    """Use one thread for small batches, and flush denormal numbers to zero.

    Adam's moments decay into denormals, and they cost 5 to 10 times a normal number.
    """
    threads_before, flushed_before = torch.get_num_threads(), sys.float_info.min / 2 == 0
    if batch_size < _ROWS_WORTH_THREADS:
        torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads_before)
        torch.set_flush_denormal(flushed_before)
