"""Specs refuse what makes no sense, and their defaults are the tutorial's."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from click.testing import CliRunner

from xfeat.featurize.errors import SpecError
from xfeat.head.cli import main
from xfeat.head.specs import HeadSpec, TargetSpec, TrainSpec


def test_the_defaults_are_the_tutorials() -> None:
    """Source: the tutorial's head and optimiser; everything it does not have is off."""
    head, train = HeadSpec(), TrainSpec()
    assert (head.hidden, head.dropout, head.feature_dropout) == ((512, 128), 0.4, 0.0)
    assert (train.epochs, train.lr, train.batch_size, train.weight_decay) == (10, 5e-4, 32, 0.0)
    assert (train.class_weight, train.schedule) == ("none", "constant")
    assert (train.label_smoothing, train.focal_gamma, train.patience, train.average) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (HeadSpec, {"hidden": (0,)}),
        (HeadSpec, {"dropout": 1.0}),
        (HeadSpec, {"feature_dropout": -0.1}),
        (TrainSpec, {"epochs": 0}),
        (TrainSpec, {"lr": 0.0}),
        (TrainSpec, {"lr": float("inf")}),
        (TrainSpec, {"lr": float("nan")}),
        (TrainSpec, {"batch_size": 1}),
        (TrainSpec, {"weight_decay": -1.0}),
        (TrainSpec, {"seed": -1}),
        (TrainSpec, {"seed": 2**32}),
        (TrainSpec, {"class_weight": "other"}),
        (TrainSpec, {"schedule": "other"}),
        (TrainSpec, {"label_smoothing": 1.0}),
        (TrainSpec, {"focal_gamma": -1.0}),
        (TrainSpec, {"patience": -1}),
        (TrainSpec, {"average": 1.0}),
        (TargetSpec, {"positive": "covid", "target_sensitivity": 0.0}),
        (TargetSpec, {"positive": "covid", "target_sensitivity": 1.1}),
    ],
)
def test_a_value_out_of_range_is_refused(kind: type[Any], settings: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="expected"):
        kind(**settings)


@pytest.mark.parametrize("spec", [HeadSpec(hidden=(7,), dropout=0.1), TrainSpec(seed=3), TargetSpec(positive="a")])
def test_a_spec_survives_json(spec: Any) -> None:
    assert type(spec).from_dict(spec.to_dict()) == spec


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(SpecError, match="momentum"):
        TrainSpec.from_dict({"momentum": 0.9})


def test_every_field_of_a_head_and_its_training_is_an_option_of_train() -> None:
    fields = {field.name for kind in (HeadSpec, TrainSpec) for field in dataclasses.fields(kind)}
    assert fields <= {parameter.name for parameter in main.commands["train"].params}


def test_options_without_values_build_the_default_specs() -> None:
    settings = main.commands["train"].make_context("train", []).params
    for kind in (HeadSpec, TrainSpec):
        assert kind(**{field.name: settings[field.name] for field in dataclasses.fields(kind)}) == kind()


@pytest.mark.parametrize("text", ["512;128", "wide"])
def test_widths_that_are_no_numbers_are_wrong_usage(text: str) -> None:
    result = CliRunner().invoke(main, ["train", "--hidden", text])
    assert result.exit_code == 2
    assert "512,128" in result.stderr
