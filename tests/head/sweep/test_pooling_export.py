"""The best run of a sweep over poolings, on its way through the other commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.export.conftest import SIDE, draw_images, invoke, random_weights
from xfeat.export.cli import main as xexport
from xfeat.featurize.cli import main as xfeat
from xfeat.head.cli import main as xhead
from xfeat.head.runs.reader import open_run


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn images, a Lite0 of random weights and a multilevel cache."""
    folder = tmp_path_factory.mktemp("project")
    random_weights(folder / "weights.pth", draw_images(folder / "data", {"train": 8, "valid": 4, "test": 4}))
    common = ["--backbone", "efficientnet-lite0", "--weights", folder / "weights.pth", "--size", SIDE]
    for pooling in ("multilevel", "final"):
        done = invoke(
            xfeat,
            *("featurize", folder / "data", "-o", folder / f"{pooling}.h5", *common),
            *("--pooling", pooling, "--engine", "torch"),
        )
        assert done.exit_code == 0, done.output
    return folder


@pytest.mark.slow
def test_the_best_run_of_a_part_of_the_features_goes_through_all_commands(project: Path) -> None:
    """Reference: the same settings on a cache featurized with pooling final."""
    runs, cache = project / "runs", project / "multilevel.h5"
    settings = ["--runs", runs, "--lr", "1e-3", "--hidden", "8", "--dropout", "0.4", "--epochs", "2"]
    done = invoke(xhead, "sweep", "--features", cache, "--pooling", "final", *settings, "--json")
    assert done.exit_code == 0, done.output
    run = json.loads(done.stdout)["run"]
    assert open_run(run).feature_spec.pooling == "final"

    invoke(xhead, "train", "--features", project / "final.h5", *settings, "--name", "own")
    assert open_run(runs / "own").metrics["test"]["loss"] == pytest.approx(open_run(run).metrics["test"]["loss"])

    done = invoke(xexport, "onnx", run, "-o", project / "model.onnx")
    assert done.exit_code == 0, done.output
    certificate = json.loads((project / "model.certificate.json").read_text())
    assert certificate["against_training"]["changed_decisions"] == 0
    done = invoke(xexport, "verify", project / "model.onnx", "--data", project / "data")
    assert done.exit_code == 0, done.output

    done = invoke(xhead, "eval", run, project / "data", "--features", project / "eval.h5", "--json")
    assert done.exit_code == 0, done.output
    by_cache = invoke(xhead, "eval", run, cache, "--json")
    assert json.loads(by_cache.stdout)["metrics"]["loss"] == pytest.approx(json.loads(done.stdout)["metrics"]["loss"])

    done = invoke(xhead, "compare", run, runs / "own", "--baselines", "--json")
    assert done.exit_code == 0, done.output
    runs_compared = [entry["against_first"] for entry in json.loads(done.stdout)["entries"] if entry["run"]]
    assert runs_compared[0] is None
    assert runs_compared[1]["accuracy"] == 0
