"""The heads of a cross-validation: trained in batches; the predictions of finished folds are stored as checkpoints."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.errors import CacheError, DivergedError, Interrupted
from xfeat.featurize.system.atomic import replacing
from xfeat.featurize.system.regular_files import read_regular
from xfeat.head.batched.scheduler import Task, fit_tasks, threads_for
from xfeat.head.data.rows import AnyRows
from xfeat.head.evaluation.predictions import softmax
from xfeat.head.runs.resumable import ELSEWHERE, resumable_folder
from xfeat.head.specs import HeadSpec, TrainSpec
from xfeat.head.training.ensemble import fit_ensemble, shares_of
from xfeat.head.training.fit import FittedHead

logger = logging.getLogger(__name__)

Probabilities = NDArray[np.float32]
_SUFFIX = ".float32"  # of a checkpoint: the probabilities, row by row


class Fold(NamedTuple):
    """Indices of the training, validation and test rows of one fold."""

    train: NDArray[np.int64]
    valid: NDArray[np.int64]
    test: NDArray[np.int64]


@dataclass(frozen=True)
class FoldTraining:
    """One training of a cross-validation."""

    division: str  # ``grouped`` or ``by-image``
    seed: int  # number of the repetition, from 0
    number: int  # of the fold, from 0
    fold: Fold
    groups: NDArray[np.int64]  # (n,), the groups that are in one fold

    @property
    def name(self) -> str:
        """Its name, unique within the cross-validation."""
        return f"{self.division}-seed{self.seed}-fold{self.number}"


def completed(
    folder: Path,
    trainings: Sequence[FoldTraining],
    train: Callable[[list[FoldTraining]], Generator[tuple[FoldTraining, Probabilities]]],
    *,
    classes: int,
) -> Iterator[tuple[FoldTraining, Probabilities]]:
    """Yield the predictions of all folds: those stored in ``folder`` first, then those that ``train`` gives.

    The latter are stored there, too.

    Raises:
        OutputError: if a checkpoint cannot be written.
    """
    rest = []
    for training in trainings:
        probabilities = _stored(folder, training, classes)
        if probabilities is None:
            rest.append(training)
        else:
            yield training, probabilities
    with closing(train(rest)) as trained:
        for training, probabilities in trained:
            content = probabilities.tobytes()
            with replacing(_checkpoint(folder, training, content), elsewhere=ELSEWHERE) as part:
                part.write_bytes(content)
            yield training, probabilities


def _stored(folder: Path, training: FoldTraining, classes: int) -> Probabilities | None:
    shape = len(training.fold.test), classes
    for file in folder.glob(f"{training.name}-*{_SUFFIX}"):
        try:
            content = read_regular(file)
        except OSError:
            continue
        if file == _checkpoint(folder, training, content) and len(content) == 4 * math.prod(shape):
            probabilities = np.frombuffer(content, np.float32).reshape(shape)
            if np.isfinite(probabilities).all():
                return probabilities
    return None  # none yet, or it has changed, or is of another fold


def _checkpoint(folder: Path, training: FoldTraining, content: bytes) -> Path:
    """Return the file of a finished fold, whose name has a digest of all that determines its content."""
    digest = hashlib.sha256(f"{folder.name} {training.name}\n".encode() + content).hexdigest()
    return folder / f"{training.name}-{digest[:16]}{_SUFFIX}"


@contextmanager
def fold_checkpoints(folder: Path) -> Iterator[Path]:
    """Yield ``folder`` for the predictions of finished folds, locked against other processes.

    The folder is deleted when the body has finished. If it raises an exception, finished folds are left and logged.

    Args:
        folder: ``runs/<name>.parts``.

    Raises:
        BusyError: if another process is using this cross-validation.
        OutputError: if the folder cannot be created.
        Interrupted: on Ctrl-C, with the command that resumes.
    """
    with resumable_folder(folder, "cross-validation", keep_if=lambda: bool(_checkpoints_in(folder))):
        try:
            yield folder
        except (DivergedError, CacheError):  # the next attempt has another cache or other settings
            _clear(folder)
            raise
        except (Exception, KeyboardInterrupt) as error:
            if not (count := len(_checkpoints_in(folder))):
                raise
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted(
                    f"stopped: {count} finished folds are stored in {folder}",
                    fix="run the same command again to resume",
                ) from error
            logger.warning("%d finished folds are stored in %s: run the same command again to resume", count, folder)
            raise
        _clear(folder)


def _checkpoints_in(folder: Path) -> list[Path]:
    return list(folder.glob(f"*{_SUFFIX}"))


def _clear(folder: Path) -> None:
    for file in _checkpoints_in(folder):
        file.unlink()


def train_folds(
    trainings: Sequence[FoldTraining], data: AnyRows, head: HeadSpec, train: TrainSpec, *, members: int, classes: int
) -> Generator[tuple[FoldTraining, Probabilities]]:
    """Train a head for each fold; yield the probabilities (n, C) of its test rows as soon as it is trained.

    Closing the generator stops the training. With more than 1 of ``members``, ensembles are trained one at a time. The
    seed of ``train`` is that of the first repetition.

    Raises:
        DivergedError: if a head diverges.
    """

    def tested(training: FoldTraining, fitted: FittedHead) -> tuple[FoldTraining, Probabilities]:
        return training, softmax(fitted.logits_of(data.take(training.fold.test)).numpy())

    if members > 1:
        for training in trainings:
            rest = np.sort(np.concatenate([training.fold.train, training.fold.valid]))
            rows, spec = data.take(rest), replace(train, seed=train.seed + training.seed)
            shares = shares_of(rows.labels.numpy(), training.groups[rest], members, seed=spec.seed)
            yield tested(training, fit_ensemble(head, spec, shares, rows, classes=classes))
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
                yield tested(trainings[place], outcome)


def _parts(data: AnyRows, fold: Fold) -> tuple[AnyRows, AnyRows]:
    return data.take(fold.train), data.take(fold.valid)
