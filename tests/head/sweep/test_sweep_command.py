"""``xhead sweep``: what it prints, wrong usage, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tests.head.sweep.sweeping import SPEC, TYPED, MakeCache, lines, run_sweep
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.errors import MismatchError
from xfeat.head.cli import main
from xfeat.head.runs.reader import open_run
from xfeat.head.sweep.results import RESULTS_FILE
from xfeat.head.sweep.space import SweepSpec


def test_the_command_prints_one_json_object_and_the_best_so_far_on_stderr(
    make_cache: MakeCache, tmp_path: Path
) -> None:
    make_cache()
    common = ["--features", f"{tmp_path}/features.h5", "--runs", f"{tmp_path}/runs", "--seed", "3", *TYPED]
    outcome = CliRunner().invoke(main, ["sweep", *common, "--json"])
    assert outcome.exit_code == 0, outcome.output
    result = json.loads(outcome.stdout)
    assert result["trials"] == result["planned"] == 8
    assert [leader["valid"]["loss"] for leader in result["leaders"]] == sorted(
        leader["valid"]["loss"] for leader in result["leaders"]
    )
    assert set(result["metrics"]) == {"train", "valid", "test"}
    assert "best so far" in outcome.stderr
    assert open_run(result["run"]).train_spec.lr == result["leaders"][0]["settings"]["lr"]
    text = CliRunner().invoke(main, ["sweep", *common])
    assert text.exit_code == 0
    assert "within one standard error" in text.stdout
    assert "the best of 8 combinations" in text.stdout
    [advice] = [line.split() for line in text.stdout.splitlines() if "xhead crossval" in line]
    tested = CliRunner().invoke(main, [*advice[1:], "--folds", "3", "--json"])
    assert tested.exit_code == 0, tested.output
    tested_specs = json.loads(tested.stdout)
    best = open_run(result["run"])
    assert tested_specs["head_spec"] == best.head_spec.to_dict()
    assert tested_specs["train_spec"] == best.train_spec.to_dict()


def test_the_standard_error_is_that_of_a_proportion(make_cache: MakeCache, swept: Path) -> None:
    result = run_sweep(make_cache(), SPEC, runs=swept, name="s")
    accuracy = np.clip(result.combinations[0].metrics["accuracy"], 1 / 18, 17 / 18)
    assert result.valid_images == 18
    assert result.standard_error == pytest.approx(np.std([0, 1]) * 2 * np.sqrt(accuracy * (1 - accuracy) / 18))
    assert 1 <= result.within_standard_error <= 8


@pytest.mark.parametrize(
    "wrong", ["--lr fast", "--hidden x", "--batch-size 8..16", "--rank beauty", "--seed 4294967295 --seeds 2"]
)
def test_wrong_values_are_wrong_usage(wrong: str, make_cache: MakeCache, tmp_path: Path) -> None:
    make_cache()
    outcome = CliRunner().invoke(main, ["sweep", "--features", f"{tmp_path}/features.h5", *wrong.split()])
    assert outcome.exit_code == 2


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGINT reaches a child otherwise there")
def test_ctrl_c_keeps_finished_trials_and_the_same_command_resumes(make_cache: MakeCache, tmp_path: Path) -> None:
    make_cache()
    settings = "--lr 1e-4..1e-2 --trials 4000 --hidden 8;linear --epochs 3 --batch-size 8 --name s"
    command = [sys.executable, "-c", "from xfeat.head.cli import main; main()", "sweep", *settings.split()]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    results = tmp_path / "runs" / "s" / RESULTS_FILE
    until = time.monotonic() + 60
    while time.monotonic() < until and not (results.is_file() and results.read_bytes().count(b"\n") > 1):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert "run the same command again" in err
    assert "Traceback" not in err
    kept = lines(results.parent)
    assert 0 < len(kept) < 4000
    spec = SweepSpec(axes=SPEC.axes)
    with pytest.raises(MismatchError):
        run_sweep(FeatureCache.open(tmp_path / "features.h5"), spec, runs=tmp_path / "runs", name="s")
    assert lines(results.parent) == kept
