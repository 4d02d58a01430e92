"""The training loop of :mod:`xfeat.head.training.fit` for several heads at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from itertools import repeat
from threading import Event

import torch
from torch import Tensor, nn

from xfeat.featurize.errors import DivergedError
from xfeat.head.batched.engine import Engine, Job, State
from xfeat.head.batched.torch_engine import TorchEngine
from xfeat.head.data.rows import AnyRows, EqualBatches, collected
from xfeat.head.training.fit import BestEpoch, FittedHead, learning_rate
from xfeat.head.training.history import EpochRecord
from xfeat.head.training.loss import balanced_weights, validation_figures

Outcome = FittedHead | DivergedError
OpenEngine = Callable[[Sequence[Job], int, Tensor], Engine]

# Steps per call of an engine: enough that the call costs nothing, few enough that Ctrl-C is heard at once.
_STEPS_AT_ONCE = 16


class BlockTraining:
    """Trains heads of one shape, batch size and number of epochs at once.

    Each draws the random numbers that :func:`xfeat.head.training.fit.fit_head` draws for it alone: they depend on
    nothing but the seed, the step and the index. Heads with the same seed and feature dropout form a stream: they see
    the same values.

    Args:
        jobs: K heads; see :func:`xfeat.head.batched.blocks.shape_of` for what they must share.
        rows: training rows; of rows on the disk, all seeds must be the same.
        valid: validation rows, or ``None`` to keep the last epoch.
        classes: number of classes C.
        open_engine: makes the engine, from jobs, number of features and class weights (K, C).
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        rows: AnyRows,
        valid: AnyRows | None,
        classes: int,
        open_engine: OpenEngine = TorchEngine,
    ) -> None:
        self._rows, self._valid = rows, valid
        equal, balanced = torch.ones(classes), balanced_weights(rows.labels, classes)
        weights = [balanced if spec.class_weight == "balanced" else equal for _, spec in jobs]
        self._engine = open_engine(jobs, rows.dim, torch.stack(weights))
        self._spec = jobs[0][1]  # of which only what the heads share is used
        self._streams = [(spec.seed, head.feature_dropout) for head, spec in jobs]
        self.heads = [BestEpoch(spec, validated=valid is not None) for _, spec in jobs]
        self._average: State | None = None

    def run(self, stop: Event) -> list[Outcome]:
        """Train to the end.

        Args:
            stop: when set, training ends within a few steps.

        Returns:
            In the order of the jobs; a :class:`DivergedError` for a head that diverged in its first epoch.

        Raises:
            CancelledError: if ``stop`` was set.
        """
        heads, models = self.heads, self._engine.models
        for epoch in range(1, self._spec.epochs + 1):
            self._validate(epoch, *self._run_epoch(epoch, stop))
            rest = [place for place, head in enumerate(self.heads) if not head.is_last()]
            if not rest:
                break
            if len(rest) < len(self.heads):
                self._keep(rest)
        return [_outcome(head, model) for head, model in zip(heads, models, strict=True)]

    def _run_epoch(self, epoch: int, stop: Event) -> tuple[Tensor, Tensor]:
        rates = [learning_rate(head.spec, epoch) for head in self.heads]
        streams = sorted(set(self._streams))
        columns = [streams.index(stream) for stream in self._streams]
        # Summed where the heads are, and read once: reading from a GPU waits for all that is under way there.
        loss_sum = torch.zeros(len(columns), device=self._engine.device)
        correct = torch.zeros(len(columns), dtype=torch.int64, device=self._engine.device)
        seeds = [seed for seed, _ in streams]
        for batches in self._batches(epoch, seeds):
            if stop.is_set():
                raise CancelledError
            losses, hits = self._engine.train(batches, seeds, columns, rates)
            if self._spec.average:
                self._update_average()
            loss_sum += losses
            correct += hits
            del batches  # a buffer read from disk is freed before the next is read
        return loss_sum.cpu() / len(self._rows.labels), correct.cpu() / len(self._rows.labels)

    def _batches(self, epoch: int, seeds: Sequence[int]) -> Iterator[EqualBatches]:
        """Yield the batches of an epoch, to each stream in its own order, some steps at a time."""
        device, batch_size = self._engine.device, self._spec.batch_size
        steps = 1 if self._spec.average else _STEPS_AT_ONCE  # the average follows every step
        orders = [self._rows.epoch(batch_size, seed, epoch) for seed in seeds]
        for first in orders[0]:
            series = [first, *map(next, orders[1:])]
            features = first.features.to(device)
            places = torch.stack([each.places for each in series]).to(device)
            labels = torch.stack([each.labels for each in series]).to(device)
            del first, series
            for some, own in zip(torch.split(places, steps, 1), torch.split(labels, steps, 1), strict=True):
                yield EqualBatches(features, some, own)
            del features

    @torch.no_grad()
    def _update_average(self) -> None:
        state = {name: values.detach() for name, values in self._engine.state.items()}
        if self._average is None:  # it starts at the weights after the first step
            self._average = {name: values.clone() for name, values in state.items()}
            return
        decay = torch.tensor([head.spec.average for head in self.heads], device=self._engine.device)
        share = torch.tensor([1 - head.spec.average for head in self.heads], device=self._engine.device)
        for name, average in self._average.items():
            if average.is_floating_point():
                average.lerp_(state[name], share.view(-1, *[1] * (average.ndim - 1)))
            else:
                average.copy_(average * decay + state[name] * share)

    def _validate(self, epoch: int, losses: Tensor, accuracies: Tensor) -> None:
        engine, valid, state = self._engine, self._valid, self._average or self._engine.state
        figures = [(math.nan, math.nan)] * len(self.heads)
        if valid is not None:
            blocks = (engine.logits(block.to(engine.device), state).cpu() for block in valid.clean_blocks())
            logits, weights = collected(blocks, len(valid.labels), dim=1), engine.class_weights.cpu()
            figures = [validation_figures(*each) for each in zip(logits, repeat(valid.labels), weights)]
        for place, head in enumerate(self.heads):
            record = EpochRecord(epoch, float(losses[place]), float(accuracies[place]), *figures[place])
            head.add(record, {name: values[place] for name, values in state.items()})

    def _keep(self, heads: Sequence[int]) -> None:
        """Take finished heads out of the block; the others are given by their present numbers."""
        self._engine.keep(heads)
        self.heads = [self.heads[place] for place in heads]
        self._streams = [self._streams[place] for place in heads]
        if self._average is not None:
            self._average = {name: values[list(heads)] for name, values in self._average.items()}


def _outcome(head: BestEpoch, model: nn.Sequential) -> Outcome:
    try:
        return head.fitted(model)
    except DivergedError as error:
        return error
