"""What an epoch was worth: one line of history.csv. Free of torch, so that the page can be drawn without it."""

from __future__ import annotations

from typing import NamedTuple


class EpochRecord(NamedTuple):
    """One line of history.csv: means over the rows of each part."""

    epoch: int
    train_loss: float
    train_accuracy: float
    valid_loss: float
    valid_accuracy: float
