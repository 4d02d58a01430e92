"""Out-of-fold predictions of a cross-validation, and their metrics. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from xfeat.head.evaluation.assess import fit_temperature
from xfeat.head.evaluation.intervals import grouped_interval, wilson_interval
from xfeat.head.evaluation.metrics import Metrics, classification_metrics
from xfeat.head.evaluation.predictions import logarithms, softmax


class FoldAccuracy(TypedDict):
    """Accuracy of each fold of each seed, their mean and standard deviation, and a 95 % interval of all images."""

    mean: float
    std: float
    interval: Sequence[float] | None
    folds: list[float]


@dataclass(frozen=True)
class OutOfFold:
    """Predictions for each image by a head that was not trained on it.

    Attributes:
        labels: int64 (n,).
        probabilities: float32 (S, n, C), one slice per seed.
        fold: int64 (S, n), the fold in which the row was tested.
        groups: int64 (n,), such as patients; rows of one group are in one fold.
    """

    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    fold: NDArray[np.int64]
    groups: NDArray[np.int64]

    @property
    def patients(self) -> NDArray[np.int64]:
        """The group of each row, int64 (n,), numbered from 0 without gaps."""
        return np.unique(self.groups, return_inverse=True)[1].astype(np.int64)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """bool (S, n): whether the most probable class is the true one."""
        return np.asarray(self.probabilities.argmax(axis=2) == self.labels)

    @property
    def tested(self) -> Iterator[tuple[int, int, NDArray[np.bool_]]]:
        """The seed and number of each fold, and which rows (n,) it tests."""
        for seed, fold in enumerate(self.fold):
            for number in np.unique(fold):
                yield seed, int(number), fold == number

    def accuracy(self, *, seed: int) -> FoldAccuracy:
        """Return the accuracy; its interval is from a bootstrap over groups."""
        scores = [float(self.correct[seed, tested].mean()) for seed, _, tested in self.tested]
        return FoldAccuracy(
            mean=float(np.mean(scores)),
            std=float(np.std(scores, ddof=1)),
            interval=grouped_interval(self.correct.mean(axis=0), self.groups, seed=seed),
            folds=scores,
        )

    @cached_property
    def calibrated(self) -> NDArray[np.float32]:
        """float32 (S, n, C): the logits of each fold are divided by a temperature of the other folds."""
        logits = self._logits
        for seed, _, tested in list(self.tested):
            temperature, _ = fit_temperature(self.labels[~tested], self._logits[seed, ~tested])
            logits[seed, tested] /= temperature
        return np.stack([softmax(one) for one in logits])

    @cached_property
    def combined(self) -> NDArray[np.float32]:
        """float32 (n, C): one prediction per image, as if a head had been trained and calibrated for it.

        The heads of all folds give calibrated probabilities, so that a threshold means the same for each. Of several
        seeds, the mean of the log-probabilities is taken.
        """
        return softmax(logarithms(self.calibrated).mean(axis=0))

    @cached_property
    def temperature(self) -> float:
        """Fitted on all folds and seeds, for a head whose own validation rows are too few."""
        return fit_temperature(np.tile(self.labels, len(self.fold)), np.concatenate(self._logits))[0]

    def averaged(self, rows: NDArray[np.bool_], temperature: float) -> NDArray[np.float32]:
        """Return probabilities float32 (m, C) of ``rows``, bool (n,), with a temperature, averaged over the seeds."""
        return softmax(self._logits[:, rows].mean(axis=0), temperature)

    @property
    def _logits(self) -> NDArray[np.float64]:
        return logarithms(self.probabilities)

    def metrics(self, class_names: tuple[str, ...]) -> Metrics:
        """Return the metrics of the combined predictions: each image counts once."""
        return classification_metrics(self.labels, self.combined, class_names)

    def each_fold(self, class_names: tuple[str, ...]) -> list[dict[str, Any]]:
        """Return the result of each fold of each seed.

        Per fold: ``seed`` and ``fold`` (from 0), ``images``, ``groups``, ``classes`` (images of each), ``wrong``,
        ``accuracy`` and its Wilson ``interval``.
        """
        rows = []
        for seed, number, tested in self.tested:
            right, images = int(self.correct[seed, tested].sum()), int(tested.sum())
            classes = {name: int((self.labels[tested] == code).sum()) for code, name in enumerate(class_names)}
            rows.append(
                {
                    "seed": seed,
                    "fold": number,
                    "images": images,
                    "groups": len(np.unique(self.groups[tested])),
                    "classes": classes,
                    "wrong": images - right,
                    "accuracy": right / images,
                    "interval": wilson_interval(right, images),
                }
            )
        return rows
