"""The training loop of :mod:`xfeat.head.training.fit` for several heads at once."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Event

import torch
from torch import Tensor, nn

from xfeat.featurize.errors import DivergedError
from xfeat.head.batched.engine import Batches, Engine, State
from xfeat.head.batched.torch_engine import TorchEngine
from xfeat.head.data.rows import AnyRows, DiskRows, collected
from xfeat.head.specs import HeadSpec, TrainSpec
from xfeat.head.training.fit import FittedHead, check_convergence, learning_rate
from xfeat.head.training.history import EpochRecord
from xfeat.head.training.loss import balanced_weights, validation_loss
from xfeat.head.training.network import build_head

Job = tuple[HeadSpec, TrainSpec]
Outcome = FittedHead | DivergedError
OpenEngine = Callable[[Sequence[nn.Sequential], Sequence[TrainSpec], Tensor], Engine]

# Steps per call of an engine: enough that the call costs nothing, few enough that Ctrl-C is heard at once.
_STEPS_AT_ONCE = 16


class Stopped(Exception):
    """The caller wants no more results."""


@dataclass
class _Head:
    """One head of a block: what of it is not stacked."""

    number: int
    spec: TrainSpec
    stream: tuple[int, float]
    history: list[EpochRecord] = field(default_factory=list)
    best_epoch: int = 0
    best_loss: float = math.inf
    best_state: State = field(default_factory=dict)

    def is_finished(self) -> bool:
        """Tell whether it stops before the last epoch."""
        impatient = self.spec.patience and len(self.history) - self.best_epoch >= self.spec.patience
        return bool(impatient) or not math.isfinite(self.history[-1].train_loss)


class BlockTraining:
    """Trains heads of one shape, batch size and number of epochs at once.

    Each draws the random numbers that :func:`xfeat.head.training.fit.fit_head` draws for it alone: they depend on
    nothing but the seed, the step and the index. Heads with the same seed and feature dropout form a stream: they see
    the same values.

    Args:
        jobs: K heads; see :func:`xfeat.head.batched.blocks.shape_of` for what they must share.
        rows: training rows, in memory where the engine computes, or on disk; in the latter case all seeds must be
            the same.
        valid: validation rows, or ``None`` to keep the last epoch.
        classes: number of classes C.
        class_weights: float32 (C,), instead of those that the specs ask for.
        open_engine: makes the engine, from untrained heads, their specs and class weights (K, C).
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        rows: AnyRows,
        valid: AnyRows | None,
        classes: int,
        class_weights: Tensor | None = None,
        open_engine: OpenEngine = TorchEngine,
    ) -> None:
        self.rows, self.valid = rows, valid
        specs = [spec for _, spec in jobs]
        if isinstance(rows, DiskRows) and len({spec.seed for spec in specs}) > 1:
            raise ValueError("heads with different seeds cannot share a buffer of rows on disk")
        self.heads = [
            _Head(number, spec, (spec.seed, head.feature_dropout)) for number, (head, spec) in enumerate(jobs)
        ]
        models = [build_head(head, dim=rows.dim, classes=classes, seed=spec.seed) for head, spec in jobs]
        self.class_weights = _class_weights(specs, rows, classes, class_weights)
        self.engine = open_engine(models, specs, self.class_weights)
        self.average: State | None = None
        self._steps = 0
        self._outcomes: dict[int, Outcome] = {}

    def run(self, stop: Event) -> list[Outcome]:
        """Train to the end.

        Args:
            stop: when set, training ends within a few steps.

        Returns:
            In the order of the jobs; a :class:`DivergedError` for a head that diverged in its first epoch.

        Raises:
            Stopped: if ``stop`` was set.
        """
        for epoch in range(1, self.heads[0].spec.epochs + 1):
            losses, accuracies = self._run_epoch(epoch, stop)
            self._validate(epoch, losses, accuracies)
            self._retire([place for place, head in enumerate(self.heads) if head.is_finished()])
            if not self.heads:
                break
        self._retire(range(len(self.heads)))
        return [self._outcomes[number] for number in sorted(self._outcomes)]

    def _run_epoch(self, epoch: int, stop: Event) -> tuple[Tensor, Tensor]:
        rates = [learning_rate(head.spec, epoch) for head in self.heads]
        streams = sorted({head.stream for head in self.heads})
        columns = [streams.index(head.stream) for head in self.heads]
        # Summed where the heads are, and read once: reading from a GPU waits for all that is under way there.
        loss_sum = torch.zeros(len(columns), device=self.engine.device)
        correct = torch.zeros(len(columns), dtype=torch.int64, device=self.engine.device)
        for batches in self._batches(epoch, [seed for seed, _ in streams]):
            if stop.is_set():
                raise Stopped
            losses, hits = self.engine.train(batches, columns, rates)
            if self.heads[0].spec.average:
                self._update_average([head.spec.average for head in self.heads])
            loss_sum += losses
            correct += hits
            del batches  # a buffer read from disk is freed before the next is read
        return loss_sum.cpu() / len(self.rows.labels), correct.cpu() / len(self.rows.labels)

    def _batches(self, epoch: int, seeds: Sequence[int]) -> Iterator[Batches]:
        """Yield the batches of an epoch, to each stream in its own order, some steps at a time."""
        spec = self.heads[0].spec
        first_seed, *other_seeds = seeds
        others = [self.rows.epoch(spec.batch_size, seed, epoch) for seed in other_seeds]
        for first in self.rows.epoch(spec.batch_size, first_seed, epoch):
            series = [first, *(next(other) for other in others)]
            features = first.features
            rows = torch.stack([each.places for each in series])
            labels = torch.stack([each.labels for each in series])
            del first, series
            steps = 1 if spec.average else _STEPS_AT_ONCE  # the average follows every step
            for some, own in zip(torch.split(rows, steps, 1), torch.split(labels, steps, 1), strict=True):
                yield Batches(features, some, own, seeds, self._steps)
                self._steps += some.shape[1]
            del features

    @torch.no_grad()
    def _update_average(self, decays: Sequence[float]) -> None:
        state = {name: values.detach() for name, values in self.engine.state.items()}
        if self.average is None:  # it starts at the weights after the first step
            self.average = {name: values.clone() for name, values in state.items()}
            return
        decay = torch.tensor(decays, device=self.engine.device)
        share = torch.tensor([1 - each for each in decays], device=self.engine.device)
        for name, average in self.average.items():
            if average.is_floating_point():
                average.lerp_(state[name], share.view(-1, *[1] * (average.ndim - 1)))
            else:
                average.copy_(average * decay + state[name] * share)

    def _validate(self, epoch: int, losses: Tensor, accuracies: Tensor) -> None:
        state = self.average or self.engine.state
        logits = None
        if self.valid is not None:
            blocks = (
                self.engine.logits(block.to(self.engine.device), state).cpu() for block in self.valid.clean_blocks()
            )
            logits = collected(blocks, len(self.valid.labels), dim=1)
        for place, head in enumerate(self.heads):
            loss, accuracy = float(losses[place]), float(accuracies[place])
            valid_loss = valid_accuracy = math.nan
            if logits is not None and self.valid is not None:
                valid_loss = float(validation_loss(logits[place], self.valid.labels, self.class_weights[place]))
                valid_accuracy = float((logits[place].argmax(1) == self.valid.labels).float().mean())
            head.history.append(EpochRecord(epoch, loss, accuracy, valid_loss, valid_accuracy))
            if valid_loss < head.best_loss or (self.valid is None and math.isfinite(loss)):
                head.best_epoch, head.best_loss = epoch, valid_loss
                head.best_state = {name: values.detach()[place].clone() for name, values in state.items()}

    def _retire(self, places: Sequence[int]) -> None:
        """Take finished heads, given by their present numbers, out of the block and note their outcomes."""
        if not places:
            return
        for place in places:
            head = self.heads[place]
            self._outcomes[head.number] = _outcome(head, self.engine.models[place])
        rest = [place for place in range(len(self.heads)) if place not in set(places)]
        self.heads = [self.heads[place] for place in rest]
        self.engine.keep(rest)
        self.class_weights = self.class_weights[rest]
        if self.average is not None:
            self.average = {name: values[rest] for name, values in self.average.items()}


def _class_weights(specs: Sequence[TrainSpec], rows: AnyRows, classes: int, given: Tensor | None) -> Tensor:
    if given is not None:
        return given.expand(len(specs), -1)
    equal, balanced = torch.ones(classes), balanced_weights(rows.labels, classes)
    return torch.stack([balanced if spec.class_weight == "balanced" else equal for spec in specs])


def _outcome(head: _Head, model: nn.Sequential) -> Outcome:
    try:
        check_convergence(head.spec, head.history, head.best_epoch)
    except DivergedError as error:
        return error
    fitted = copy.deepcopy(model)
    fitted.load_state_dict(head.best_state)
    return FittedHead(fitted.eval(), head.history, head.best_epoch)
