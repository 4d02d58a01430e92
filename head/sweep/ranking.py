"""Ranking the combinations of a sweep by their validation metrics, and how certain the ranking is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xfeat.head.sweep.space import SweepSpec, axis_text
from xfeat.head.sweep.trials import RANKINGS, Settings, Trial

if TYPE_CHECKING:
    from xfeat.head.runs.reader import Run

COMPLETE, TIME_IS_UP, INTERRUPTED = "complete", "time is up", "interrupted"


@dataclass(frozen=True)
class Combination:
    """One combination of settings, with a trial per seed."""

    trials: tuple[Trial, ...]

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Means over the seeds, of those that all seeds have."""
        names = [name for name in RANKINGS if all(name in trial.metrics for trial in self.trials)]
        return {name: float(np.mean([trial.metrics[name] for trial in self.trials])) for name in names}

    @property
    def settings(self) -> Settings:
        """All settings except the seed."""
        return self.trials[0].spec.settings

    @property
    def best_trial(self) -> Trial:
        """The trial with the lowest loss."""
        return min(self.trials, key=lambda trial: trial.metrics["loss"])

    @property
    def metrics_text(self) -> str:
        """The metrics in one line."""
        auc = f", AUC {self.metrics['auc']:.4f}" if "auc" in self.metrics else ""
        return f"loss {self.metrics['loss']:.4f}, accuracy {self.metrics['accuracy']:.4f}{auc}"


@dataclass(frozen=True)
class SweepResult:
    """The result of a sweep.

    Attributes:
        folder: ``runs/<sweep>``.
        spec: the sweep.
        planned: total number of trials.
        trials: the finished ones.
        combinations: best first; those that diverged with any seed are left out.
        state: ``complete`` or ``time is up``.
        valid_images: number of validation images n.
        run: the run of the best trial; ``None`` if every trial diverged.
        seconds: duration of this call.
    """

    folder: Path
    spec: SweepSpec
    planned: int
    trials: list[Trial]
    combinations: list[Combination]
    state: str
    valid_images: int
    run: Run | None
    seconds: float

    @property
    def diverged(self) -> int:
        """Number of trials that diverged."""
        return sum(trial.status != "ok" for trial in self.trials)

    @property
    def standard_error(self) -> float:
        """Standard error of the best accuracy, 0 to 1, as if the n validation images were independent."""
        accuracy = self.combinations[0].metrics["accuracy"]
        # Never zero: a perfect score on n images is as uncertain as one mistake among them.
        clipped = min(max(accuracy, 1 / self.valid_images), 1 - 1 / self.valid_images)
        return math.sqrt(clipped * (1 - clipped) / self.valid_images)

    @property
    def within_standard_error(self) -> int:
        """Number of combinations whose accuracy is within one standard error of the best one's."""
        least = self.combinations[0].metrics["accuracy"] - self.standard_error
        return sum(combination.metrics["accuracy"] >= least for combination in self.combinations)


def rank_combinations(trials: Sequence[Trial], spec: SweepSpec) -> list[Combination]:
    """Group trials by combination and sort by the mean of the ranking metric over the seeds, best first.

    Combinations with an unfinished seed are ranked only if no combination has all its seeds.
    """
    seeds: dict[tuple[Any, ...], list[Trial]] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        seeds.setdefault(tuple(trial.spec.settings.values()), []).append(trial)
    converged = [group for group in seeds.values() if all(trial.status == "ok" for trial in group)]
    complete = [group for group in converged if len(group) == spec.seeds] or converged
    combinations = [Combination(tuple(group)) for group in complete]
    sign = 1 if spec.rank == "loss" else -1
    # Ties are broken by the loss; a combination without a defined metric comes last.
    return sorted(
        combinations, key=lambda one: (sign * one.metrics.get(spec.rank, sign * math.inf), one.metrics["loss"])
    )


def setting_text(spec: SweepSpec, combination: Combination) -> str:
    """Name a combination by the settings that vary."""
    varying = [key for key, axis in spec.axes.items() if not isinstance(axis, tuple) or len(axis) > 1]
    names = varying or list(spec.axes)
    return " ".join(f"{key.replace('_', '-')} {axis_text(key, (combination.settings[key],))}" for key in names)
