"""The heads of a cross-validation: trained side by side, their answers kept on the disk until all are there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from featurize.atomic import replacing
from featurize.errors import Interrupted, SpecError
from head.batched import Task, fit_tasks, threads_for
from head.ensemble import fit_ensemble
from head.fit import FittedHead
from head.predictions import softmax
from head.rows import AnyRows
from head.specs import HeadSpec, TrainSpec
from head.sweep_results import ELSEWHERE, locked_folder

Answers = NDArray[np.float32]


class Fold(NamedTuple):
    """Row numbers (into the rows that take part) of one training."""

    train: NDArray[np.int64]
    valid: NDArray[np.int64]
    test: NDArray[np.int64]


@dataclass(frozen=True)
class Training:
    """One training of a cross-validation.

    Attributes:
        way: how rows were kept together.
        seed: of the repetition, counted from 0.
        number: of the fold.
        fold: who trains, who chooses the epoch, who is tested.
        groups: int64 (n,), what was kept together.
    """

    way: str
    seed: int
    number: int
    fold: Fold
    groups: NDArray[np.int64]

    @property
    def name(self) -> str:
        """Return a name that no other training has."""
        return f"{self.way}-seed{self.seed}-fold{self.number}"


class KeptAnswers:
    """Answers to finished folds, a file each; a folder that goes when all of them are there.

    Args:
        folder: ``runs/<name>.parts``, or ``None`` to keep nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._made = [] if folder is None else [path for path in folder.parents if not path.exists()]

    @contextmanager
    def until_finished(self) -> Iterator[None]:
        """Keep other processes out of the folder; remove it at the end, unless that is an exception.

        Raises:
            BusyError: if another process is at this cross-validation.
            OutputError: if the folder cannot be made.
            Interrupted: on Ctrl-C, with the way to go on.
        """
        if self.folder is None:
            yield
            return
        with locked_folder(self.folder, "cross-validation"):
            try:
                yield
            except KeyboardInterrupt as stop:
                count = len(list(self.folder.glob("*.npy")))
                raise Interrupted(
                    f"stopped: {count} finished folds are in {self.folder}", mend="run the same command again to go on"
                ) from stop
        shutil.rmtree(self.folder, ignore_errors=True)
        for path in self._made:
            with suppress(OSError):
                path.rmdir()

    def completed(
        self, trainings: Sequence[Training], train: Callable[[list[Training]], Generator[tuple[Training, Answers]]]
    ) -> Iterator[tuple[Training, Answers]]:
        """Yield the answers to all folds: those of an earlier call, and those that ``train`` adds for the others.

        Raises:
            OutputError: if an answer cannot be written.
        """
        rest = []
        for training in trainings:
            answers = self._read(training)
            if answers is None:
                rest.append(training)
            else:
                yield training, answers
        with closing(train(rest)) as fresh:
            for training, answers in fresh:
                self._save(training, answers)
                yield training, answers

    def _read(self, training: Training) -> Answers | None:
        if self.folder is None:
            return None
        try:
            answers: Answers = np.load(self.folder / f"{training.name}.npy", allow_pickle=False)
        except (OSError, ValueError, EOFError):  # not there, or damaged
            return None
        return answers if len(answers) == len(training.fold.test) else None

    def _save(self, training: Training, answers: Answers) -> None:
        if self.folder is not None:
            with replacing(self.folder / f"{training.name}.npy", elsewhere=ELSEWHERE) as part, part.open("wb") as file:
                np.save(file, answers, allow_pickle=False)


def answers_to_folds(
    trainings: Sequence[Training], data: AnyRows, head: HeadSpec, train: TrainSpec, *, members: int, classes: int
) -> Generator[tuple[Training, Answers]]:
    """Train a head for each fold; yield probabilities (n, C) of the rows it tests, as they come.

    Closing the generator ends what is under way.

    Args:
        trainings: the folds.
        data: all rows that take part.
        head: the layers.
        train: the optimisation, with the seed of the first repetition.
        members: heads that are trained and averaged for each; one at a time if that is more than 1.
        classes: number of classes C.

    Raises:
        SpecError: if a head diverges.
    """

    def answers(training: Training, fitted: FittedHead) -> tuple[Training, Answers]:
        return training, softmax(fitted.logits_of(data.take(training.fold.test)).numpy())

    if members > 1:
        for training in trainings:
            rest = np.sort(np.concatenate([training.fold.train, training.fold.valid]))
            spec, groups = replace(train, seed=train.seed + training.seed), training.groups[rest]
            yield answers(training, fit_ensemble(head, spec, members, data.take(rest), groups, classes=classes))
        return
    tasks = [
        Task({place: (head, replace(train, seed=train.seed + training.seed))}, partial(_parts, data, training.fold))
        for place, training in enumerate(trainings)
    ]
    with closing(fit_tasks(tasks, classes=classes, threads=threads_for(data))) as blocks:
        for block in blocks:
            for place, outcome in block.outcomes.items():
                if isinstance(outcome, SpecError):
                    raise outcome
                yield answers(trainings[place], outcome)


def _parts(data: AnyRows, fold: Fold) -> tuple[AnyRows, AnyRows]:
    return data.take(fold.train), data.take(fold.valid)
