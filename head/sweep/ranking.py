"""Which settings of a sweep did best on the validation images, and how much that says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xfeat.head.sweep.space import SweepSpec
from xfeat.head.sweep.trials import RANKINGS, Settings, Trial

if TYPE_CHECKING:
    from xfeat.head.runs.reader import Run

COMPLETE, TIME_IS_UP, INTERRUPTED = "complete", "time is up", "interrupted"


@dataclass(frozen=True)
class Setting:
    """One combination of settings, over its seeds.

    Attributes:
        trials: one a seed.
        metrics: means over the seeds.
    """

    trials: tuple[Trial, ...]
    metrics: dict[str, float]

    @property
    def settings(self) -> Settings:
        """The combination: all settings but the seed."""
        return self.trials[0].spec.settings

    @property
    def best_trial(self) -> Trial:
        """The seed with the lowest loss."""
        return min(self.trials, key=lambda trial: trial.metrics["loss"])

    def rank_key(self, rank: str) -> tuple[float, float]:
        """Return what sorts the better first; the loss decides between equals."""
        value = self.metrics.get(rank, -math.inf)
        return (value if rank == "loss" else -value), self.metrics["loss"]


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found.

    Attributes:
        folder: ``runs/<sweep>``.
        spec: what was asked for.
        planned: trials in all.
        trials: those that are finished.
        settings: their combinations, the best first; those that diverged with any seed are left out.
        state: ``complete`` or ``time is up``.
        valid_images: number of validation images n.
        run: the best one, as a run folder; ``None`` if every trial diverged.
        seconds: that this call took.
    """

    folder: Path
    spec: SweepSpec
    planned: int
    trials: list[Trial]
    settings: list[Setting]
    state: str
    valid_images: int
    run: Run | None
    seconds: float

    @property
    def diverged(self) -> int:
        """Number of trials whose loss was never a number."""
        return sum(trial.status != "ok" for trial in self.trials)

    @property
    def standard_error(self) -> float:
        """Standard error of the best accuracy, as a share, as if the n validation images were independent."""
        accuracy = self.settings[0].metrics["accuracy"]
        # Never zero: nobody knows a perfect score on n images better than one mistake among them.
        doubt = min(max(accuracy, 1 / self.valid_images), 1 - 1 / self.valid_images)
        return math.sqrt(doubt * (1 - doubt) / self.valid_images)

    @property
    def tied(self) -> int:
        """Number of settings whose accuracy is within one standard error of the best one's."""
        least = self.settings[0].metrics["accuracy"] - self.standard_error
        return sum(setting.metrics["accuracy"] >= least for setting in self.settings)


def rank_settings(trials: Sequence[Trial], spec: SweepSpec) -> list[Setting]:
    """Bring the seeds of each combination together and sort by the mean of the ranking figure, the best first.

    Combinations that lack a seed count only where none is whole.
    """
    seeds: dict[tuple[Any, ...], list[Trial]] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        seeds.setdefault(tuple(trial.spec.settings.values()), []).append(trial)
    sound = [group for group in seeds.values() if all(trial.status == "ok" for trial in group)]
    whole = [group for group in sound if len(group) == spec.seeds] or sound
    settings = [Setting(tuple(group), _means(group)) for group in whole]
    return sorted(settings, key=lambda setting: setting.rank_key(spec.rank))


def _means(trials: Sequence[Trial]) -> dict[str, float]:
    names = [name for name in RANKINGS if all(name in trial.metrics for trial in trials)]
    return {name: float(np.mean([trial.metrics[name] for trial in trials])) for name in names}
