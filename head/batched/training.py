"""The training loop of :mod:`xfeat.head.training.fit` for a block of heads at once."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Event, Lock

import torch
from torch import Tensor, nn

from xfeat.featurize.errors import DivergedError
from xfeat.head.batched.dropout import Masks
from xfeat.head.batched.layers import State
from xfeat.head.batched.program import Batches, Program, TorchProgram
from xfeat.head.data.rows import AnyRows, DiskRows, collected
from xfeat.head.specs import HeadSpec, TrainSpec
from xfeat.head.training.fit import FittedHead, check_convergence, learning_rate
from xfeat.head.training.history import EpochRecord
from xfeat.head.training.loss import balanced_weights, validation_loss
from xfeat.head.training.network import build_head

Job = tuple[HeadSpec, TrainSpec]
Outcome = FittedHead | DivergedError
MakeProgram = Callable[[Sequence[nn.Sequential], Sequence[TrainSpec], Tensor], Program]

# Torch's random state belongs to the whole process; blocks run in threads.
_RANDOM_STATE = Lock()


class Stopped(Exception):
    """The caller wants no more results."""


@dataclass
class _Head:
    """One head of a block: what of it is not stacked."""

    number: int
    spec: TrainSpec
    stream: int
    history: list[EpochRecord] = field(default_factory=list)
    best_epoch: int = 0
    best_loss: float = math.inf
    best_state: State = field(default_factory=dict)

    def ends(self) -> bool:
        """Tell whether it stops here though epochs are left."""
        patient = self.spec.patience and len(self.history) - self.best_epoch >= self.spec.patience
        return bool(patient) or not math.isfinite(self.history[-1].train_loss)


class BlockTraining:
    """Trains heads of one shape, batch size and number of epochs side by side.

    Random numbers are those that :func:`xfeat.head.training.fit.fit_head` draws for each head alone, in its order.
    Heads with the same layers and the same seed draw the same ones, so that they share a generator, the order of rows
    and the masks.

    Args:
        jobs: K heads; see :func:`xfeat.head.batched.blocks.shape_of` for what they must share.
        rows: training rows, in memory where the program computes, or on the disk; of the latter, all heads must draw
            the same.
        valid: validation rows, or ``None`` to keep the last epoch.
        classes: number of classes C.
        class_weights: float32 (C,), instead of those that the specs ask for.
        make_program: what computes the steps, from untrained heads, their specs and class weights (K, C).
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        rows: AnyRows,
        valid: AnyRows | None,
        classes: int,
        class_weights: Tensor | None = None,
        make_program: MakeProgram = TorchProgram,
    ) -> None:
        self.rows, self.valid, self.classes = rows, valid, classes
        streams = list(dict.fromkeys((head, spec.seed) for head, spec in jobs))
        if isinstance(rows, DiskRows) and len(streams) > 1:
            raise ValueError("heads that draw different random numbers cannot share a buffer of rows on the disk")
        built = [_start(head, seed, rows.dim, classes) for head, seed in streams]
        stream_of = [streams.index((head, spec.seed)) for head, spec in jobs]
        self.generators = [generator for _, generator in built]
        self.heads = [_Head(number, spec, stream_of[number]) for number, (_, spec) in enumerate(jobs)]
        models, specs = [built[stream][0] for stream in stream_of], [spec for _, spec in jobs]
        self.class_weights = _class_weights(specs, rows, classes, class_weights)
        self.program: Program = make_program(models, specs, self.class_weights)
        self.masks = Masks([model for model, _ in built], rows.dim, self.program.draw_factors)
        self.average: State | None = None
        self._outcomes: dict[int, Outcome] = {}

    def run(self, stop: Event) -> list[Outcome]:
        """Train to the end.

        Args:
            stop: when set, training ends after a few more steps.

        Returns:
            In the order of the jobs; a :class:`DivergedError` for a head that diverged in its first epoch.

        Raises:
            Stopped: if ``stop`` was set.
        """
        for epoch in range(1, self.heads[0].spec.epochs + 1):
            losses, accuracies = self._run_epoch(epoch, stop)
            self._validate(epoch, losses, accuracies)
            self._retire([number for number, head in enumerate(self.heads) if head.ends()])
            if not self.heads:
                break
        self._retire(range(len(self.heads)))
        return [self._outcomes[number] for number in sorted(self._outcomes)]

    def _run_epoch(self, epoch: int, stop: Event) -> tuple[Tensor, Tensor]:
        rates = [learning_rate(head.spec, epoch) for head in self.heads]
        streams = [head.stream for head in self.heads]
        used = sorted(set(streams))
        columns = [used.index(stream) for stream in streams]
        # Added up where the heads are, and asked for once: a GPU's answer waits for all that is under way there.
        loss_sum = torch.zeros(len(streams), device=self.program.device)
        correct = torch.zeros(len(streams), dtype=torch.int64, device=self.program.device)
        for batches in self._batches(used):
            if stop.is_set():
                raise Stopped
            losses, hits = self.program.train(batches, columns, rates)
            if self.heads[0].spec.average:
                self._follow([head.spec.average for head in self.heads])
            loss_sum += losses
            correct += hits
            del batches  # a buffer from the disk goes before the next is read
        return loss_sum.cpu() / len(self.rows.labels), correct.cpu() / len(self.rows.labels)

    def _batches(self, streams: Sequence[int]) -> Iterator[Batches]:
        """Yield what comes next, to each stream in its own order: a few batches at a time."""
        spec = self.heads[0].spec
        generators = [self.generators[stream] for stream in streams]
        leading, *others = (self.rows.epoch(spec.batch_size, generator) for generator in generators)
        for stretch in leading:
            stretches = [stretch, *(next(other) for other in others)]
            features = stretch.features
            places = torch.stack([stretch.places for stretch in stretches])
            labels = torch.stack([stretch.labels for stretch in stretches])
            # The average follows every step.
            most = 1 if spec.average else self.masks.most_batches(len(streams), places.shape[2])
            for some, own in zip(torch.split(places, most, 1), torch.split(labels, most, 1), strict=True):
                masks = self.masks.draw(self.generators, streams, some.shape[1:])
                yield Batches(features, some, own, masks)
            del stretch, stretches, features

    @torch.no_grad()
    def _follow(self, decays: Sequence[float]) -> None:
        if self.average is None:  # the average starts at the weights after the first step
            self.average = {name: values.detach().clone() for name, values in self.program.stack.state.items()}
            return
        device = self.program.device
        decay, share = torch.tensor(decays, device=device), torch.tensor([1 - each for each in decays], device=device)
        for name, average in self.average.items():
            values = self.program.stack.state[name]
            if average.is_floating_point():
                average.lerp_(values, share.view(-1, *[1] * (average.ndim - 1)))
            else:
                average.copy_(average * decay + values * share)

    def _validate(self, epoch: int, losses: Tensor, accuracies: Tensor) -> None:
        kept = self.average or self.program.stack.state
        logits = None
        if self.valid is not None:
            device, clean = self.program.device, self.valid.clean_blocks()
            blocks = (self.program.stack.logits(block.to(device), kept) for block in clean)
            logits = collected(blocks, len(self.valid.labels), dim=1).cpu()
        for number, head in enumerate(self.heads):
            loss, accuracy = float(losses[number]), float(accuracies[number])
            valid_loss = valid_accuracy = math.nan
            if logits is not None and self.valid is not None:
                valid_loss = float(validation_loss(logits[number], self.valid.labels, self.class_weights[number]))
                valid_accuracy = float((logits[number].argmax(1) == self.valid.labels).float().mean())
            head.history.append(EpochRecord(epoch, loss, accuracy, valid_loss, valid_accuracy))
            if valid_loss < head.best_loss or (self.valid is None and math.isfinite(loss)):
                head.best_epoch, head.best_loss = epoch, valid_loss
                head.best_state = {name: values.detach()[number].clone() for name, values in kept.items()}

    def _retire(self, numbers: Sequence[int]) -> None:
        """Take heads, given by their present numbers, out of the block and settle what became of them."""
        if not numbers:
            return
        for number in numbers:
            head = self.heads[number]
            self._outcomes[head.number] = _outcome(head, self.program.stack.models[number])
        rest = [number for number in range(len(self.heads)) if number not in set(numbers)]
        self.heads = [self.heads[number] for number in rest]
        self.program.keep(rest)
        self.class_weights = self.class_weights[rest]
        if self.average is not None:
            self.average = {name: values[rest] for name, values in self.average.items()}


def _start(head: HeadSpec, seed: int, dim: int, classes: int) -> tuple[nn.Sequential, torch.Generator]:
    """Return an untrained head and a generator that goes on where drawing its weights ended."""
    generator = torch.Generator()
    with _RANDOM_STATE, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_head(head, dim=dim, classes=classes)
        generator.set_state(torch.get_rng_state())
    return model, generator


def _class_weights(specs: Sequence[TrainSpec], rows: AnyRows, classes: int, given: Tensor | None) -> Tensor:
    if given is not None:
        return given.expand(len(specs), -1)
    alike, balanced = torch.ones(classes), balanced_weights(rows.labels, classes)
    return torch.stack([balanced if spec.class_weight == "balanced" else alike for spec in specs])


def _outcome(head: _Head, model: nn.Sequential) -> Outcome:
    try:
        check_convergence(head.spec, head.history, head.best_epoch)
    except DivergedError as error:
        return error
    fitted = copy.deepcopy(model)
    fitted.load_state_dict(head.best_state)
    return FittedHead(fitted.eval(), head.history, head.best_epoch)
