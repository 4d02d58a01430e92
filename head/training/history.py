"""The losses and accuracies of an epoch, a line of history.csv. Imports no torch, since reports need it."""

from __future__ import annotations

from typing import NamedTuple


class EpochRecord(NamedTuple):
    """A line of history.csv: means over the training rows and over the validation rows."""

    epoch: int
    train_loss: float
    train_accuracy: float
    valid_loss: float
    valid_accuracy: float
