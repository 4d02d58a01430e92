"""Several heads averaged into one ordinary head."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from sklearn.model_selection import StratifiedGroupKFold
from torch import nn

from tests.head.conftest import DIM, MakeCache, cloud
from xfeat.featurize.errors import DataError
from xfeat.head.cli import main
from xfeat.head.crossval.runner import cross_validate
from xfeat.head.data.rows import as_rows
from xfeat.head.runs.reader import read_history
from xfeat.head.specs import CrossvalSpec, HeadSpec, TrainSpec
from xfeat.head.train import TrainOptions, train_run
from xfeat.head.training.ensemble import average_of, fit_ensemble, shares_of, widened
from xfeat.head.training.fit import fit_head
from xfeat.head.training.history import EpochRecord
from xfeat.head.training.network import build_head

TRAIN = TrainSpec(epochs=3, batch_size=16)


def untrained(spec: HeadSpec, seed: int, *, dim: int, classes: int) -> nn.Sequential:
    """A head whose every number differs from those it starts with."""
    torch.manual_seed(seed)
    model = build_head(spec, dim=dim, classes=classes)
    for layer in model:
        if isinstance(layer, nn.BatchNorm1d):
            for tensor in (layer.weight.data, layer.running_var):
                tensor.uniform_(0.2, 3.0)
            for tensor in (layer.bias.data, layer.running_mean):
                tensor.normal_()
    return model.eval()


@pytest.mark.parametrize("hidden", [(), (7,), (8, 5), (6, 5, 4)])
@pytest.mark.parametrize("feature_dropout", [0.0, 0.2])
def test_the_merged_head_gives_the_mean_of_the_logits(hidden: tuple[int, ...], feature_dropout: float) -> None:
    """Reference: the heads, one by one."""
    spec = HeadSpec(hidden=hidden, feature_dropout=feature_dropout)
    heads = [untrained(spec, seed, dim=9, classes=4) for seed in range(3)]
    merged = average_of(heads, spec, dim=9, classes=4)
    features = torch.randn(50, 9) * 3
    with torch.inference_mode():
        wanted = torch.stack([head.double()(features.double()) for head in heads]).mean(0)
        found = merged(features)
    assert not merged.training
    assert (found - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))
    assert widened(spec, 3).hidden == tuple(3 * width for width in hidden)


def test_a_feature_without_variance_in_one_head_is_merged_exactly() -> None:
    """A feature that was always zero has no variance; another head may have seen it move."""
    spec = HeadSpec(hidden=(5,))
    heads = [untrained(spec, seed, dim=3, classes=2) for seed in range(2)]
    heads[0][0].running_var[1] = 0
    features = torch.tensor([[1.0, 0.0, 2.0], [-1.0, 0.0, 0.5]])
    with torch.inference_mode():
        found = average_of(heads, spec, dim=3, classes=2)(features)
        wanted = torch.stack([head(features) for head in heads]).mean(0)
    assert torch.allclose(found, wanted, atol=1e-4)


def test_each_head_leaves_out_its_own_part_of_the_groups() -> None:
    """References: scikit-learn's folds, and :func:`xfeat.head.training.fit.fit_head` of each."""
    labels = np.arange(90) % 2
    groups = np.repeat(np.arange(45), 2) // 2
    rows = as_rows(cloud(labels), labels)
    shares = shares_of(labels, groups, 3, seed=5)
    ensemble = fit_ensemble(HeadSpec(hidden=(8,)), replace(TRAIN, seed=5), shares, rows, classes=2)
    logits = []
    folds = StratifiedGroupKFold(3, shuffle=True, random_state=5).split(labels, labels, groups)
    for member, (kept, left_out) in enumerate(folds):
        assert not set(groups[kept]) & set(groups[left_out])
        spec = replace(TRAIN, seed=5 + 1000 * member)
        one = fit_head(HeadSpec(hidden=(8,)), spec, rows.take(kept), rows.take(left_out), classes=2)
        assert one.best_epoch == ensemble.best_epochs[member]
        logits.append(one.logits(rows.features))
    assert torch.allclose(ensemble.logits(rows.features), torch.stack(logits).mean(0), atol=1e-5)


def test_epochs_are_counted_on_and_the_history_is_the_mean() -> None:
    labels = np.arange(60) % 2
    rows = as_rows(cloud(labels), labels)
    told: list[EpochRecord] = []
    shares = shares_of(labels, np.arange(60), 2, seed=0)
    ensemble = fit_ensemble(HeadSpec(hidden=()), TRAIN, shares, rows, classes=2, progress=told.append)
    assert [record.epoch for record in told] == [1, 2, 3, 4, 5, 6]
    assert [record.epoch for record in ensemble.history] == [1, 2, 3]
    assert ensemble.history[1].valid_loss == pytest.approx((told[1].valid_loss + told[4].valid_loss) / 2)


def test_a_run_of_several_heads_is_an_ordinary_run(make_cache: MakeCache, tmp_path: Path) -> None:
    cache = make_cache()
    run = train_run(cache, HeadSpec(hidden=(8, 4)), TRAIN, runs=tmp_path / "runs", options=TrainOptions(members=3))
    assert run.head_spec.hidden == (24, 12)
    assert run.ensemble["members"] == len(run.ensemble["best_epochs"]) == 3
    with torch.inference_mode():
        logits = run.load_head()(torch.from_numpy(np.array(cache.features)))
    probabilities = (logits / run.temperature).softmax(1).numpy()
    written = [[float(row["p_covid"]), float(row["p_normal"])] for row in run.predictions()]
    assert np.array(written) == pytest.approx(probabilities, abs=1e-6)
    assert len(read_history(run)) == 3
    assert "3 heads with averaged logits" in (run.folder / "report.html").read_text().replace("\xa0", " ")


def test_validation_images_have_no_part_in_training_several(make_cache: MakeCache, tmp_path: Path) -> None:
    cache = make_cache()
    features = np.asarray(cache.features).copy()
    features[100:140] = features[100:140][::-1] * 5
    other = make_cache("other.h5", features=features)
    runs = [
        train_run(
            one, HeadSpec(hidden=(4,)), TRAIN, runs=tmp_path / "runs", name=str(place), options=TrainOptions(members=2)
        )
        for place, one in enumerate((cache, other))
    ]
    assert runs[0].head_sha256 == runs[1].head_sha256


def test_an_ensemble_of_one_is_a_single_head(make_cache: MakeCache, tmp_path: Path) -> None:
    cache = make_cache()
    run = train_run(cache, HeadSpec(hidden=(4,)), TRAIN, runs=tmp_path / "runs", options=TrainOptions(members=1))
    assert run.ensemble is None
    assert run.head_spec.hidden == (4,)


def test_cross_validation_averages_as_training_does(make_cache: MakeCache) -> None:
    """Reference: the first fold, trained by hand."""
    cache = make_cache(sizes=(60, 0, 0), separation=0.3)
    head = HeadSpec(hidden=(4,))
    result = cross_validate(cache, head, TRAIN, CrossvalSpec(folds=3, members=2))
    test = np.flatnonzero(result.main.fold[0] == 0)
    rest = np.flatnonzero(result.main.fold[0] != 0)
    rows = as_rows(np.asarray(cache.features), np.asarray(cache.columns.label))
    groups = result.main.groups[rest]
    shares = shares_of(rows.labels.numpy()[rest], groups, 2, seed=0)
    ensemble = fit_ensemble(head, TRAIN, shares, rows.take(rest), classes=2)
    wanted = ensemble.logits(rows.features[test]).softmax(1).numpy()
    assert result.main.probabilities[0, test] == pytest.approx(wanted, abs=1e-6)


def test_more_members_than_patients_are_one_message() -> None:
    labels = np.array([0] * 10 + [1] * 10)
    groups = np.concatenate([np.arange(10), 10 + np.arange(10) // 4])
    with pytest.raises(DataError, match="--ensemble 3"):
        shares_of(labels, groups, 4, seed=0)


@pytest.mark.parametrize("command", ["train", "crossval"])
def test_more_heads_than_patients_are_named_with_the_cache_before_anything_is_trained(
    make_cache: MakeCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Of the rarer class 12 patients of 15 are outside a fold of five."""
    monkeypatch.chdir(tmp_path)
    labels = [0] * 45 + [1] * 15

    def untrainable(*arguments: object, **options: object) -> None:
        raise AssertionError("nothing is to be trained")

    make_cache(sizes=(60,), split=[0] * 50 + [1] * 5 + [2] * 5, labels=labels)
    monkeypatch.setattr("xfeat.head.training.ensemble.fit_head", untrainable)
    monkeypatch.setattr("xfeat.head.data.rows.read_rows", untrainable)
    done = CliRunner().invoke(main, [command, "--ensemble", "13"])
    assert done.exit_code == 1
    assert "features.h5: too few patients or images of a class for an ensemble of 13 heads" in done.stderr
    assert f"--ensemble {5 if command == 'train' else 12}" in done.stderr
    assert not Path("runs").exists()


@pytest.mark.slow
def test_the_commands_take_ensemble(make_cache: MakeCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_cache()
    options = ("--ensemble", "3", "--epochs", "2", "--hidden", "8")
    done = CliRunner().invoke(main, ["train", *options, "--json", "--tensorboard"])
    assert json.loads(done.stdout)["ensemble"]["members"] == 3
    text = CliRunner().invoke(main, ["train", *options]).stdout
    assert "3 heads averaged, best epochs" in text
    done = CliRunner().invoke(main, ["crossval", *options, "--folds", "2", "--json"])
    assert json.loads(done.stdout)["ensemble"] == 3
    assert CliRunner().invoke(main, ["train", "--ensemble", "0"]).exit_code == 2


def test_the_dimension_is_that_of_the_cache(make_cache: MakeCache, tmp_path: Path) -> None:
    run = train_run(make_cache(), HeadSpec(hidden=()), TRAIN, runs=tmp_path / "runs", options=TrainOptions(members=2))
    assert run.dim == DIM
    assert sum(p.numel() for p in run.load_head().parameters()) == 2 * DIM + 2 * DIM + 2
