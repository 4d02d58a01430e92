"""Heads on part of a cache: the features of the last layer out of those of several layers."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tests.caches import write_made_up
from tests.head.sweep.conftest import CLASSES
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.errors import MismatchError
from xfeat.head.cli import main
from xfeat.head.data.pooling import chosen_pooling, pooled
from xfeat.head.data.rows import Rows
from xfeat.head.evaluate import evaluate_run
from xfeat.head.runs.reader import open_run
from xfeat.head.specs import HeadSpec, MemorySpec, TrainSpec
from xfeat.head.sweep.results import RESULTS_FILE
from xfeat.head.sweep.runner import Sweep
from xfeat.head.sweep.space import SweepSpec
from xfeat.head.train import TrainOptions, train_run
from xfeat.head.training.fit import fit_head

# Of Lite0: source, table 1 of the EfficientNet paper and Backbone.maps.
FINAL, ALL = 1280, 1280 + 40 + 80 + 112 + 192 + 320
BOTH = {"pooling": ("final", "multilevel"), "hidden": ((8,), ()), "epochs": (2,), "lr": (1e-3,)}


@pytest.fixture
def caches(make_cache: Callable[..., FeatureCache], tmp_path: Path) -> dict[str, FeatureCache]:
    """Two caches of the same drawn images, by their pooling."""
    base = make_cache("small.h5")
    means = np.random.default_rng(7).normal(size=(3, ALL)) * 0.05
    features = means[np.asarray(base.columns.label)] + np.random.default_rng(8).normal(size=(90, ALL))
    columns = {name: getattr(base.columns, name) for name in ("label", "split", "path", "group")}
    return {
        pooling: write_made_up(
            tmp_path / f"{pooling}.h5", features[:, :dim].astype(np.float32), columns, CLASSES, pooling=pooling
        )
        for pooling, dim in (("final", FINAL), ("multilevel", ALL))
    }


def test_a_multilevel_cache_is_read_as_the_final_one_to_the_bit(caches: dict[str, FeatureCache]) -> None:
    part = pooled(caches["multilevel"], "final")
    assert part.spec == caches["final"].spec
    assert np.array_equal(part.features, caches["final"].features)
    for pooling, cache in caches.items():
        assert pooled(cache, pooling) is cache
        assert chosen_pooling(cache, pooling) is cache
    assert pooled(caches["final"], "multilevel") is caches["final"]


def test_missing_features_are_an_error_with_a_fix(caches: dict[str, FeatureCache], tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match=r"xfeat featurize .* --pooling multilevel"):
        Sweep(caches["final"], SweepSpec(axes=BOTH), runs=tmp_path / "runs")
    for command in ("train", "crossval", "sweep"):
        done = CliRunner().invoke(main, [command, "--features", f"{tmp_path}/final.h5", "--pooling", "multilevel"])
        assert done.exit_code == 1
        assert "--pooling multilevel --classes covid,normal,pneumonia -o final-multilevel.h5" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("memory_mb", [1000.0, 0.4, 0.3])
def test_each_trial_reaches_what_its_head_alone_does_on_a_cache_of_its_pooling(
    caches: dict[str, FeatureCache], tmp_path: Path, memory_mb: float
) -> None:
    """References: :func:`xfeat.head.training.fit.fit_head`, and :func:`train_run`, on the other cache.

    The 72 rows take 0.37 and 0.58 MB: all are in memory, or those of one pooling, or none.
    """
    memory = MemorySpec(memory_mb=memory_mb)
    done = Sweep(caches["multilevel"], SweepSpec(axes=BOTH), runs=tmp_path / "runs", memory=memory).run()
    with (done.folder / RESULTS_FILE).open(newline="") as file:
        rows = {int(row["trial"]): row for row in csv.DictReader(file)}
    assert len(rows) == 4
    assert {row["pooling"] for row in rows.values()} == {"final", "multilevel"}
    for trial in done.trials:
        head, train, pooling = trial.spec
        options = TrainOptions(memory=memory)
        alone = train_run(
            caches[pooling], head, train, runs=tmp_path / "alone", name=str(trial.number), options=options
        )
        assert rows[trial.number]["pooling"] == pooling
        assert trial.best_epoch == alone.best_epoch
        assert trial.metrics["loss"] == pytest.approx(alone.calibration["before"]["valid"]["loss"], rel=1e-4)
    assert done.run is not None
    best = open_run(tmp_path / "alone" / str(done.combinations[0].best_trial.number))
    assert done.run.head_sha256 == best.head_sha256
    assert done.run.feature_spec == best.feature_spec
    assert done.run.dim == best.dim


@pytest.mark.slow
def test_train_on_a_part_writes_what_it_writes_on_the_other_cache(
    caches: dict[str, FeatureCache], tmp_path: Path
) -> None:
    command = ["train", "--features", f"{tmp_path}/multilevel.h5", "--pooling", "final", "--name", "part"]
    settings = ["--hidden", "8", "--epochs", "2"]
    assert CliRunner().invoke(main, [*command, *settings, "--runs", str(tmp_path)]).exit_code == 0
    specs = HeadSpec(hidden=(8,)), TrainSpec(epochs=2)
    part, own = open_run(tmp_path / "part"), train_run(caches["final"], *specs, runs=tmp_path, name="own")
    assert part.head_sha256 == own.head_sha256
    assert part.metrics == own.metrics
    assert (part.feature_spec, part.dim) == (own.feature_spec, FINAL)
    assert part.feature_spec.fingerprint == own.feature_spec.fingerprint
    assert part.cache["content_sha256"] == caches["multilevel"].content_sha256


@pytest.mark.slow
def test_crossval_of_a_part_is_that_of_the_other_cache(caches: dict[str, FeatureCache], tmp_path: Path) -> None:
    common = ["crossval", "--runs", f"{tmp_path}/runs", "--hidden", "linear", "--epochs", "1", "--folds", "3", "--json"]
    part, own = (
        json.loads(CliRunner().invoke(main, [*common, "--features", f"{tmp_path}/{name}.h5", *more]).stdout)
        for name, more in (("multilevel", ["--pooling", "final"]), ("final", []))
    )
    assert part["metrics"] == own["metrics"]
    assert part["feature_fingerprint"] == caches["final"].spec.fingerprint


@pytest.mark.slow
def test_a_run_on_a_part_is_tested_on_either_cache(caches: dict[str, FeatureCache], tmp_path: Path) -> None:
    head, train = HeadSpec(hidden=()), TrainSpec(epochs=1)
    part = train_run(pooled(caches["multilevel"], "final"), head, train, runs=tmp_path, name="part")
    whole = train_run(caches["multilevel"], head, train, runs=tmp_path, name="whole")
    assert evaluate_run(part, caches["final"]).metrics == evaluate_run(part, caches["multilevel"]).metrics
    with pytest.raises(MismatchError, match="other settings than those of the run"):
        evaluate_run(whole, caches["final"])


def test_naming_the_pooling_of_the_cache_is_the_same_sweep(caches: dict[str, FeatureCache], tmp_path: Path) -> None:
    for pooling, cache in caches.items():
        said = Sweep(cache, SweepSpec(axes={"pooling": (pooling,), "lr": (1e-3,)}), runs=tmp_path)
        silent = Sweep(cache, SweepSpec(axes={"lr": (1e-3,)}), runs=tmp_path)
        assert said.default_name == silent.default_name
        assert list(said.spec.trial_specs()) == list(silent.spec.trial_specs())


def test_both_poolings_share_one_copy_of_the_rows(caches: dict[str, FeatureCache], tmp_path: Path) -> None:
    """Reference: rows that were copied from a cache of the other pooling."""
    spec = SweepSpec(axes={"pooling": ("final", "multilevel"), "hidden": ((8,),), "epochs": (2,)})
    parts = Sweep(caches["multilevel"], spec, runs=tmp_path)._parts
    part, whole = (parts[pooling][0] for pooling in ("final", "multilevel"))
    assert isinstance(part, Rows)
    assert isinstance(whole, Rows)
    assert part.features.data_ptr() == whole.features.data_ptr()
    alike = SweepSpec(axes={"hidden": ((8,),), "epochs": (2,)})
    own = Sweep(caches["final"], alike, runs=tmp_path)._parts["final"][0]
    assert isinstance(own, Rows)
    job = HeadSpec(hidden=(8,)), TrainSpec(epochs=2)
    fitted, alone = (fit_head(*job, rows, None, classes=3) for rows in (part, own))
    assert fitted.history[-1].train_loss == alone.history[-1].train_loss
