"""The predictions of a head. Imports no torch, since they are sent to the worker process."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

_SMALLEST = 1e-45  # the smallest positive float32


@dataclass(frozen=True)
class Predictions:
    """Logits, and the probabilities and decisions that follow from them.

    Attributes:
        paths: n paths, relative to the data root.
        split: n names, such as ``train``.
        labels: int64 (n,).
        logits: float32 (n, C), before the temperature.
        temperature: logits are divided by it before the softmax.
        positive: index of the class with a threshold, or ``None``: the most probable class is predicted.
        threshold: ``positive`` is predicted if its probability is at least this.
        groups: int64 (n,), such as patients; ``None``: every image is on its own.
    """

    paths: list[str]
    split: list[str]
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]
    temperature: float = 1.0
    positive: int | None = None
    threshold: float = 0.5
    groups: NDArray[np.int64] | None = None

    @property
    def patients(self) -> NDArray[np.int64]:
        """The group of each row, int64 (n,), numbered from 0 without gaps."""
        groups = np.arange(len(self)) if self.groups is None else self.groups
        return np.unique(groups, return_inverse=True)[1].astype(np.int64)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """float32 (n, C)."""
        return softmax(self.logits, self.temperature)

    @property
    def decisions(self) -> NDArray[np.int64]:
        """int64 (n,), the predicted classes."""
        return decide(self.probabilities, self.positive, self.threshold)

    def part(self, name: str) -> Predictions:
        """Return the rows of one split."""
        keep = np.flatnonzero(np.array(self.split) == name)
        return replace(
            self,
            paths=[self.paths[row] for row in keep],
            split=[name] * len(keep),
            labels=self.labels[keep],
            logits=self.logits[keep],
            groups=None if self.groups is None else self.groups[keep],
        )


def softmax(logits: NDArray[np.floating], temperature: float = 1.0) -> NDArray[np.float32]:
    """Return probabilities float32 (n, C) of logits (n, C), computed in double precision."""
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    result: NDArray[np.float32] = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return result


def logarithms(probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the logarithms float64 of probabilities, with finite ones where a probability was rounded to 0."""
    return np.asarray(np.log(np.maximum(probabilities.astype(np.float64), _SMALLEST)))


def decide(probabilities: NDArray[np.floating], positive: int | None, threshold: float) -> NDArray[np.int64]:
    """Return predicted classes (n,): ``positive`` from its threshold on, else the most probable other class.

    Without a positive class it is the most probable one.
    """
    if positive is None:
        return np.asarray(probabilities.argmax(axis=1), np.int64)
    others = probabilities.copy()
    others[:, positive] = -1
    return np.asarray(np.where(probabilities[:, positive] >= threshold, positive, others.argmax(axis=1)), np.int64)
