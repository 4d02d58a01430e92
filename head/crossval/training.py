"""The heads of a cross-validation: trained side by side, their answers kept on the disk until all are there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tokenize import TokenError
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.errors import CacheError, DivergedError, Interrupted
from xfeat.featurize.system.atomic import replacing
from xfeat.head.batched.scheduler import Task, fit_tasks, threads_for
from xfeat.head.data.rows import AnyRows
from xfeat.head.evaluation.predictions import softmax
from xfeat.head.runs.resumable import ELSEWHERE, resumable_folder
from xfeat.head.specs import HeadSpec, TrainSpec
from xfeat.head.training.ensemble import fit_ensemble, shares_of
from xfeat.head.training.fit import FittedHead

logger = logging.getLogger(__name__)

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
    """Answers to finished folds, a file each.

    Args:
        folder: see :func:`kept_answers`; ``None`` keeps nothing.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

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
        except (OSError, ValueError, EOFError, TypeError, TokenError):  # not there, or damaged
            return None
        whole = answers.ndim == 2 and answers.dtype == np.float32 and len(answers) == len(training.fold.test)
        return answers if whole else None

    def _save(self, training: Training, answers: Answers) -> None:
        if self.folder is not None:
            with replacing(self.folder / f"{training.name}.npy", elsewhere=ELSEWHERE) as part, part.open("wb") as file:
                np.save(file, answers, allow_pickle=False)


@contextmanager
def kept_answers(folder: Path) -> Iterator[KeptAnswers]:
    """Keep answers to finished folds, and other processes out, until the body has done all that it wants of them.

    The folder goes at the end. An exception in the body leaves it if there are answers in it, and says so.

    Args:
        folder: ``runs/<name>.parts``.

    Raises:
        BusyError: if another process is at this cross-validation.
        OutputError: if the folder cannot be made.
        Interrupted: on Ctrl-C, with the way to go on.
    """
    with resumable_folder(folder, "cross-validation", worth_keeping=lambda: bool(_answers_in(folder))):
        try:
            yield KeptAnswers(folder)
        except KeyboardInterrupt as stop:
            if count := len(_answers_in(folder)):
                raise Interrupted(
                    f"stopped: {count} finished folds are in {folder}", fix="run the same command again to go on"
                ) from stop
            raise
        except Exception as error:
            if isinstance(error, DivergedError | CacheError):  # another cache or setting has other answers
                _clear(folder)
            elif count := len(_answers_in(folder)):
                logger.warning("%d finished folds are kept in %s: the same command goes on from them", count, folder)
            raise
        _clear(folder)


def _answers_in(folder: Path) -> list[Path]:
    return list(folder.glob("*.npy"))


def _clear(folder: Path) -> None:
    for file in _answers_in(folder):
        file.unlink()


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
        DivergedError: if a head diverges.
    """

    def answers(training: Training, fitted: FittedHead) -> tuple[Training, Answers]:
        return training, softmax(fitted.logits_of(data.take(training.fold.test)).numpy())

    if members > 1:
        for training in trainings:
            rest = np.sort(np.concatenate([training.fold.train, training.fold.valid]))
            rows, spec = data.take(rest), replace(train, seed=train.seed + training.seed)
            shares = shares_of(rows.labels.numpy(), training.groups[rest], members, seed=spec.seed)
            yield answers(training, fit_ensemble(head, spec, shares, rows, classes=classes))
        return
    tasks = [
        Task({place: (head, replace(train, seed=train.seed + training.seed))}, partial(_parts, data, training.fold))
        for place, training in enumerate(trainings)
    ]
    with closing(fit_tasks(tasks, classes=classes, threads=threads_for(data))) as blocks:
        for block in blocks:
            for place, outcome in block.outcomes.items():
                if isinstance(outcome, DivergedError):
                    raise outcome
                yield answers(trainings[place], outcome)


def _parts(data: AnyRows, fold: Fold) -> tuple[AnyRows, AnyRows]:
    return data.take(fold.train), data.take(fold.valid)
