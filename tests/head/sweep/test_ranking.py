"""Which settings come first."""

from __future__ import annotations

import pytest

from xfeat.head.specs import HeadSpec, TrainSpec
from xfeat.head.sweep.ranking import Combination, rank_combinations
from xfeat.head.sweep.space import SweepSpec
from xfeat.head.sweep.trials import Trial, TrialSpec


def trial(number: int, lr: float, seed: int, loss: float, accuracy: float, status: str = "ok") -> Trial:
    metrics = {} if status != "ok" else {"loss": loss, "accuracy": accuracy}
    return Trial(number, status, TrialSpec(HeadSpec(), TrainSpec(lr=lr, seed=seed)), 1, metrics, 0.1)


def test_settings_are_ranked_by_their_mean_over_the_seeds() -> None:
    trials = [
        trial(0, 1e-3, 0, 0.1, 0.9),  # the luckiest trial of all
        trial(1, 1e-3, 1, 0.9, 0.5),
        trial(2, 1e-2, 0, 0.3, 0.8),
        trial(3, 1e-2, 1, 0.3, 0.8),
        trial(4, 1e-1, 0, 0.01, 1.0),
        trial(5, 1e-1, 1, 0.0, 0.0, "diverged"),
        trial(6, 5e-1, 0, 0.01, 1.0),  # its second seed is missing
    ]

    def order(rank: str) -> list[float]:
        return [setting.settings["lr"] for setting in rank_combinations(trials, SweepSpec(axes={}, seeds=2, rank=rank))]

    assert order("loss") == order("accuracy") == [1e-2, 1e-3]
    [best, _] = rank_combinations(trials, SweepSpec(axes={}, seeds=2))
    assert best.metrics == {"loss": pytest.approx(0.3), "accuracy": pytest.approx(0.8)}
    assert isinstance(best, Combination)


def test_combinations_with_unfinished_seeds_are_ranked_only_if_none_is_complete() -> None:
    trials = [trial(0, 1e-3, 0, 0.4, 0.9), trial(2, 1e-2, 0, 0.3, 0.8)]
    settings = rank_combinations(trials, SweepSpec(axes={}, seeds=2))
    assert [setting.settings["lr"] for setting in settings] == [1e-2, 1e-3]
