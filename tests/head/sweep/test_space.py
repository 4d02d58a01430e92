"""What a sweep tries, and in which order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from xfeat.featurize.errors import SpecError
from xfeat.head.specs import HeadSpec, TrainSpec
from xfeat.head.sweep.space import DEFAULT_AXES, Range, SweepSpec, axis_text, parse_axis
from xfeat.head.sweep.trials import SETTINGS


def test_a_grid_holds_every_combination_with_every_seed_once() -> None:
    spec = SweepSpec(axes={"lr": (1e-3, 1e-2), "hidden": ((8,), ())}, seeds=3, first_seed=5)
    jobs = list(spec.trial_specs())
    assert len(jobs) == len(set(jobs)) == 12
    assert {(head.hidden, train.lr, train.seed) for head, train, _ in jobs} == {
        (hidden, lr, seed) for hidden in ((8,), ()) for lr in (1e-3, 1e-2) for seed in (5, 6, 7)
    }


def test_fewer_trials_are_drawn_from_the_grid_and_more_begin_with_them() -> None:
    axes = {"lr": (1e-4, 1e-3, 1e-2), "dropout": (0.1, 0.2, 0.3)}
    few, more = (list(SweepSpec(axes=axes, trials=count).trial_specs()) for count in (3, 7))
    assert more[:3] == few
    assert len(set(more)) == 7
    assert few != list(SweepSpec(axes=axes, trials=3, first_seed=1).trial_specs())
    for whole in (SweepSpec(axes=axes), SweepSpec(axes=axes, trials=9), SweepSpec(axes=axes, trials=100)):
        assert list(whole.trial_specs())[:7] == more
        assert len(list(whole.trial_specs())) == 9


def test_a_range_is_sampled_over_all_its_length_and_by_logarithm_where_it_is_long() -> None:
    axes = {"lr": Range(1e-4, 1e-1), "dropout": Range(0.0, 0.6), "hidden": ((8,), ())}
    jobs = list(SweepSpec(axes=axes, trials=64).trial_specs())
    rates = np.log10([train.lr for _, train, _ in jobs])
    dropouts = [head.dropout for head, _, _ in jobs]
    # A third of 64 points in each third of either range, give or take what a spread sequence may miss.
    assert np.histogram(rates, 3, (-4, -1))[0].min() >= 18
    assert np.histogram(dropouts, 3, (0, 0.6))[0].min() >= 18
    assert 28 <= sum(head.hidden == () for head, _, _ in jobs) <= 36
    assert list(SweepSpec(axes=axes, trials=10).trial_specs()) == jobs[:10]


def test_a_narrow_range_gives_each_rounded_value_once() -> None:
    """Values have three digits: four from 0.001 to 0.00103, and 31 from 0.3 to 0.33."""
    narrow = SweepSpec(axes={"lr": Range(1e-3, 1.03e-3)}, trials=50)
    assert sorted(spec.train.lr for spec in narrow.trial_specs()) == [0.001, 0.00101, 0.00102, 0.00103]
    assert narrow.planned == 4
    wider = SweepSpec(axes={"lr": Range(1e-3, 1.03e-3), "dropout": Range(0.3, 0.33), "epochs": (1, 2)}, trials=60)
    specs = list(wider.trial_specs())
    assert len(specs) == len(set(specs)) == wider.planned == 60
    for fewer in (7, 30):
        assert list(replace(wider, trials=fewer).trial_specs()) == specs[:fewer]


def test_a_range_without_a_number_of_trials_is_refused() -> None:
    with pytest.raises(SpecError, match="--trials"):
        SweepSpec(axes={"lr": Range(1e-4, 1e-2)})


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_survives_parsing_and_writing(name: str) -> None:
    text = {
        "hidden": "512,128;linear",
        "class_weight": "none,balanced",
        "schedule": "constant,cosine",
        "pooling": "final,multilevel",
    }.get(name)
    text = text or ("2,5" if isinstance(getattr(TrainSpec(), name, 0.0), int) else "0.1,0.25")
    axis = parse_axis(name, text)
    assert isinstance(axis, tuple)
    assert axis_text(name, axis) == text
    assert len(list(SweepSpec(axes={name: axis}).trial_specs())) == 2


@pytest.mark.parametrize(("name", "text"), [("lr", "fast"), ("lr", "1e-4..b"), ("hidden", "8,x"), ("epochs", "1.5")])
def test_a_value_that_is_not_a_number_is_named(name: str, text: str) -> None:
    with pytest.raises(ValueError, match=r"'(fast|b|x|1.5)' is not a (whole )?number: list values"):
        parse_axis(name, text)


def test_values_keep_their_kinds() -> None:
    assert parse_axis("hidden", "512,128;256;linear") == ((512, 128), (256,), ())
    assert parse_axis("lr", "1e-4..1e-2") == Range(1e-4, 1e-2)
    assert parse_axis("batch_size", "16, 32,16") == (16, 32)


@pytest.mark.parametrize(
    ("name", "text"), [("lr", "fast"), ("batch_size", "8..16"), ("hidden", "a"), ("lr", "1e-2..1e-4"), ("epochs", "")]
)
def test_malformed_values_are_refused(name: str, text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_axis(name, text)


@pytest.mark.parametrize(
    "settings",
    [
        {"axes": {"lr": (1e-3, -1.0)}},
        {"axes": {"dropout": Range(0.0, 1.0)}, "trials": 3},
        {"axes": {"speed": (1,)}},
        {"axes": {"pooling": ("none",)}},
        {"axes": {}, "seeds": 0},
        {"axes": {}, "trials": 0},
        {"axes": {}, "rank": "beauty"},
    ],
)
def test_impossible_sweeps_are_refused_before_anything_is_trained(settings: dict[str, object]) -> None:
    with pytest.raises(SpecError):
        SweepSpec(**settings)  # type: ignore[arg-type]


def test_settings_without_values_have_the_defaults_of_the_specs() -> None:
    assert list(SweepSpec(axes={}).trial_specs()) == [(HeadSpec(), TrainSpec(), "final")]
    assert len(list(SweepSpec(axes=DEFAULT_AXES).trial_specs())) == 18
