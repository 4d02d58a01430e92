"""A sweep whose trials Optuna proposes, with the real library."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.head.sweep.sweeping import lines
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.errors import MismatchError, MissingExtraError, SpecError
from xfeat.head.cli import main
from xfeat.head.specs import HeadSpec, TrainSpec
from xfeat.head.sweep.results import RESULTS_FILE
from xfeat.head.sweep.runner import Sweep
from xfeat.head.sweep.sampling import ROUND, propose, rounds
from xfeat.head.sweep.space import Range, SweepSpec
from xfeat.head.sweep.trials import Trial

MakeCache = Callable[..., FeatureCache]
AXES = {"lr": Range(1e-5, 1.0), "dropout": Range(0.0, 0.6), "hidden": ((8,), ())}


def spec(trials: int, **others: Any) -> SweepSpec:
    return SweepSpec(**{"axes": AXES, "trials": trials, "sampler": "optuna", **others})


def as_if_trained(sweep: SweepSpec, loss_of: Callable[[HeadSpec, TrainSpec], float | None]) -> list[Trial]:
    """Drive the rounds with a loss that is written down instead of trained."""
    trials: list[Trial] = []
    for jobs in rounds(sweep, trials):
        for number in range(len(trials), len(jobs)):
            head, train, _ = jobs[number]
            loss = loss_of(head, train)
            metrics = {} if loss is None else {"loss": loss, "accuracy": -loss}
            trials.append(Trial(number, "diverged" if loss is None else "ok", jobs[number], 1, metrics, 0.1))
    return trials


def bowl(head: HeadSpec, train: TrainSpec) -> float:
    """Lowest, 0, at a linear head without dropout and a learning rate of 0.003."""
    import math

    return (math.log10(train.lr) + 2.5) ** 2 + 4 * head.dropout + len(head.hidden)


def test_it_comes_closer_than_chance_does() -> None:
    """Reference: random draws of the same size. A median of five seeds, so that no luck decides."""
    import random

    def chance(seed: int) -> float:
        draw = random.Random(seed)
        return min(
            bowl(
                HeadSpec(hidden=draw.choice([(8,), ()]), dropout=draw.uniform(0, 0.6)),
                TrainSpec(lr=10 ** draw.uniform(-5, 0)),
            )
            for _ in range(48)
        )

    found = [min(trial.metrics["loss"] for trial in as_if_trained(spec(48, first_seed=s), bowl)) for s in range(5)]
    assert sorted(found)[2] < sorted(chance(seed) for seed in range(99))[49] / 2


def test_a_figure_that_should_be_high_is_made_high() -> None:
    trials = as_if_trained(spec(48, rank="accuracy"), bowl)
    late = sorted(trial.metrics["loss"] for trial in trials[24:])
    assert late[12] < sorted(trial.metrics["loss"] for trial in trials[:8])[4]


def test_trials_that_diverge_are_avoided() -> None:
    """Two fifths of the range diverge."""
    diverged = 0
    for seed in range(3):
        sweep = spec(64, first_seed=seed)
        trials = as_if_trained(sweep, lambda head, train: None if train.lr > 0.01 else bowl(head, train))
        diverged += sum(trial.status == "diverged" for trial in trials[-32:])
    assert diverged / 96 < 0.3


def test_values_stay_inside_and_can_be_typed() -> None:
    for trial in as_if_trained(spec(24), bowl):
        assert 1e-5 <= trial.spec.train.lr <= 1.0
        assert trial.spec.train.lr == float(f"{trial.spec.train.lr:.3g}")
        assert trial.spec.head.hidden in ((8,), ())


def test_no_combination_is_tried_twice_and_a_grid_comes_to_its_end() -> None:
    grid = spec(100, axes={"dropout": (0.0, 0.1, 0.2), "epochs": (1, 2, 3, 4)}, seeds=2)
    trials = as_if_trained(grid, bowl)
    assert grid.planned == len(trials) == 24
    assert len({(trial.spec.head, trial.spec.train.epochs) for trial in trials}) == 12


def test_a_range_with_few_values_comes_to_its_end() -> None:
    """Values have three digits: four from 0.001 to 0.00103, where Optuna goes on to propose them for ever."""
    narrow = spec(50, axes={"lr": Range(1e-3, 1.03e-3)})
    trials = as_if_trained(narrow, bowl)
    assert narrow.planned == len(trials) == 4
    assert {trial.spec.train.lr for trial in trials} == {0.001, 0.00101, 0.00102, 0.00103}
    assert propose(narrow, [{"lr": trial.spec.train.lr} for trial in trials], trials, 3) == []


@pytest.fixture
def small(make_cache: MakeCache) -> tuple[FeatureCache, SweepSpec]:
    axes = {**AXES, "lr": Range(1e-4, 1e-2), "epochs": (1,), "hidden": ((4,), ())}
    return make_cache(), spec(2 * ROUND + 3, axes=axes)


@pytest.mark.slow
def test_a_sweep_that_was_cut_goes_on_as_if_it_had_not_been(
    small: tuple[FeatureCache, SweepSpec], tmp_path: Path
) -> None:
    """Reference: the same sweep, whole. Lines of the second round are cut off, as a crash leaves them."""
    cache, sweep = small
    Sweep(cache, sweep, runs=tmp_path / "a", name="s").run()
    Sweep(cache, sweep, runs=tmp_path / "b", name="s").run()
    file = tmp_path / "b" / "s" / RESULTS_FILE
    kept = file.read_bytes().splitlines(keepends=True)[: 1 + ROUND + 3]
    file.write_bytes(b"".join(kept) + b"19,ok,lin")
    done = Sweep(cache, sweep, runs=tmp_path / "b", name="s").run()
    assert done.state == "complete"
    whole, resumed = (
        sorted(
            ({**row, "seconds": "", "line_sha256": ""} for row in lines(tmp_path / name / "s")),
            key=lambda row: int(row["trial"]),
        )
        for name in "ab"
    )
    assert resumed == whole
    assert len(whole) == 2 * ROUND + 3


@pytest.mark.slow
def test_more_trials_go_on_with_fewer(small: tuple[FeatureCache, SweepSpec], tmp_path: Path) -> None:
    cache, sweep = small
    fewer = SweepSpec(axes=sweep.axes, trials=ROUND, sampler="optuna")
    first = Sweep(cache, fewer, runs=tmp_path / "runs").run()
    more = Sweep(cache, sweep, runs=tmp_path / "runs").run()
    assert more.folder == first.folder
    assert [trial.spec for trial in more.trials[:ROUND]] == [trial.spec for trial in first.trials]
    assert [trial.metrics for trial in more.trials[:ROUND]] == [trial.metrics for trial in first.trials]
    spread = SweepSpec(axes=sweep.axes, trials=ROUND)
    assert Sweep(cache, spread, runs=tmp_path / "runs").run().folder != first.folder


@pytest.mark.slow
def test_time_that_is_up_ends_the_rounds(small: tuple[FeatureCache, SweepSpec], tmp_path: Path) -> None:
    cache, sweep = small
    done = Sweep(cache, sweep, runs=tmp_path / "runs").run(time_limit_s=0)
    assert done.state == "time is up"
    assert len(done.trials) < sweep.planned
    assert Sweep(cache, sweep, runs=tmp_path / "runs").run().state == "complete"


@pytest.mark.slow
def test_trials_of_another_version_are_not_mixed_in(small: tuple[FeatureCache, SweepSpec], tmp_path: Path) -> None:
    cache, sweep = small
    folder = Sweep(cache, sweep, runs=tmp_path / "runs").run().folder
    rows = [line.rpartition(",")[0] for line in (folder / RESULTS_FILE).read_text().splitlines()]  # without digests
    (folder / RESULTS_FILE).write_text("\n".join(rows).replace("0.", "0.0") + "\n")
    with pytest.raises(MismatchError, match="proposed by another version"):
        Sweep(cache, sweep, runs=tmp_path / "runs").run()


def test_the_command_requires_trials_for_optuna(
    make_cache: MakeCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_cache()
    command = ["sweep", "--sampler", "optuna", "--lr", "1e-4..1e-2", "--epochs", "1", "--hidden", "linear", "--json"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 2
    assert "--trials" in done.stderr
    done = CliRunner().invoke(main, [*command, "--trials", "3"])
    assert json.loads(done.stdout)["trials"] == 3
    assert CliRunner().invoke(main, ["sweep", "--sampler", "magic"]).exit_code == 2
    with pytest.raises(SpecError, match="unknown sampler"):
        spec(3, sampler="magic")


def test_without_the_library_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'xfeat-onnx\[optuna\]'"):
        propose(spec(3), [], [], 3)
