"""One trial of a sweep: its settings and its result."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

from xfeat.featurize.specs import POOLINGS, require
from xfeat.head.specs import HeadSpec, TrainSpec

HEAD_SETTINGS = tuple(field.name for field in dataclasses.fields(HeadSpec))
TRAIN_SETTINGS = tuple(field.name for field in dataclasses.fields(TrainSpec) if field.name != "seed")
POOLING = "pooling"
SETTINGS = (*TRAIN_SETTINGS, *HEAD_SETTINGS, POOLING)
RANKINGS = ("loss", "accuracy", "balanced_accuracy", "auc")
Settings = dict[str, Any]


class TrialSpec(NamedTuple):
    """The settings of a trial: the layers, the optimisation with its seed, and the pooling of the features."""

    head: HeadSpec
    train: TrainSpec
    pooling: str = POOLINGS[0]

    @classmethod
    def of(cls, settings: Settings, seed: int) -> TrialSpec:
        """Build it from some of :data:`SETTINGS`; the others have their defaults.

        Raises:
            SpecError: if a value is out of range.
        """
        head = {name: value for name, value in settings.items() if name in HEAD_SETTINGS}
        train = {name: value for name, value in settings.items() if name in TRAIN_SETTINGS}
        pooling = settings.get(POOLING, POOLINGS[0])
        require(pooling in POOLINGS, "unknown pooling", expected=" or ".join(POOLINGS), found=pooling)
        return cls(HeadSpec(**head), TrainSpec(**train, seed=seed), pooling)

    @property
    def settings(self) -> Settings:
        """The values of :data:`SETTINGS`."""
        specs = {**vars(self.head), **vars(self.train), POOLING: self.pooling}
        return {name: specs[name] for name in SETTINGS}


@dataclass(frozen=True)
class Trial:
    """One trained head of a sweep, a line of results.csv.

    Attributes:
        number: from 0, in the order of the sweep.
        status: ``ok`` or ``diverged``.
        spec: its settings.
        best_epoch: the epoch with the lowest validation loss; 0 if it diverged.
        metrics: ``loss``, ``accuracy``, ``balanced_accuracy`` and ``auc`` on the validation images, if defined.
        seconds: its part of the training time of its block.
    """

    number: int
    status: str
    spec: TrialSpec
    best_epoch: int
    metrics: dict[str, float]
    seconds: float
