"""The run folder: whole or not there, readable again, and nobody's fault stays unnamed."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.head.conftest import DIM, MakeCache, cloud
from tests.head.runs.conftest import QUICK, SMALL, trained
from xfeat.featurize.errors import BusyError, CacheError, DataError, OutputError, RunError
from xfeat.head.data.rows import as_rows
from xfeat.head.runs.reader import Run, latest_run, open_run
from xfeat.head.runs.writer import RunWriter
from xfeat.head.specs import HeadSpec, TargetSpec, TrainSpec
from xfeat.head.train import TrainOptions, train_run
from xfeat.head.training.history import EpochRecord


def test_a_run_folder_holds_what_is_documented(run: Run) -> None:
    assert {file.name for file in run.folder.iterdir()} == {
        "run.json",
        "head.safetensors",
        "history.csv",
        "predictions.csv",
        "report.html",
    }


def test_a_run_read_again_is_the_run_that_was_written(make_cache: MakeCache, tmp_path: Path) -> None:
    run = trained(make_cache(), tmp_path)
    again = open_run(run.folder)
    assert again == run
    assert (again.head_spec, again.train_spec, again.dim) == (SMALL, QUICK, DIM)
    assert again.class_names == ("covid", "normal")
    assert again.audit["audited"] is False
    assert again.operating_point is None


def test_the_saved_head_gives_the_saved_probabilities(make_cache: MakeCache, tmp_path: Path) -> None:
    """Reference: torch's softmax of the loaded head's logits, over the temperature."""
    cache = make_cache()
    run = trained(cache, tmp_path)
    with torch.inference_mode():
        logits = run.load_head()(as_rows(cache.features, np.asarray(cache.columns.label)).features)
    expected = torch.softmax(logits / run.temperature, 1).numpy()
    rows = run.predictions()
    assert [row["path"] for row in rows] == cache.columns.path
    found = np.array([[float(row["p_covid"]), float(row["p_normal"])] for row in rows])
    assert np.abs(found - expected).max() < 1e-6
    assert [row["prediction"] for row in rows] == [run.class_names[code] for code in expected.argmax(1)]


def test_the_threshold_decides_in_the_table_of_predictions(make_cache: MakeCache, tmp_path: Path) -> None:
    run = trained(make_cache(separation=0.2), tmp_path, target=TargetSpec(positive="covid", target_sensitivity=1.0))
    threshold = run.operating_point.threshold
    for row in run.predictions():
        assert (row["prediction"] == "covid") == (float(row["p_covid"]) >= threshold)
    assert any(row["prediction"] == "covid" and float(row["p_covid"]) < 0.5 for row in run.predictions())


def test_history_has_a_line_an_epoch(run: Run) -> None:
    with (run.folder / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    losses = [float(row["valid_loss"]) for row in rows]
    assert run.best_epoch == int(np.argmin(losses)) + 1


def test_the_same_seed_writes_the_same_head(make_cache: MakeCache, tmp_path: Path) -> None:
    cache = make_cache()
    first, second = trained(cache, tmp_path, "a"), trained(cache, tmp_path, "b")
    assert (first.folder / "head.safetensors").read_bytes() == (second.folder / "head.safetensors").read_bytes()
    assert first.metrics == second.metrics


def test_a_name_in_use_is_refused_and_the_run_stays(make_cache: MakeCache, tmp_path: Path) -> None:
    first = trained(make_cache(), tmp_path)
    before = {file.name: file.read_bytes() for file in first.folder.iterdir()}
    with pytest.raises(RunError, match="a run with this name already exists"):
        trained(make_cache("other.h5"), tmp_path)
    assert {file.name: file.read_bytes() for file in first.folder.iterdir()} == before


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "latest", "é" * 76])
def test_a_name_that_is_no_folder_name_is_refused(make_cache: MakeCache, tmp_path: Path, name: str) -> None:
    if name == "":
        assert trained(make_cache(), tmp_path, name="").folder.is_dir()  # an empty name is none: the time is taken
        return
    with pytest.raises(RunError, match=r"not a valid name|name of the run is too long"):
        trained(make_cache(), tmp_path, name=name)


def test_latest_points_to_the_newest_run(make_cache: MakeCache, tmp_path: Path) -> None:
    cache = make_cache()
    for name in ("b", "a"):
        trained(cache, tmp_path, name)
        assert latest_run(tmp_path / "runs").name == name


def test_without_links_the_newest_run_json_is_the_latest(make_cache: MakeCache, tmp_path: Path) -> None:
    cache = make_cache()
    for age, name in ((100, "b"), (200, "a")):
        os.utime(trained(cache, tmp_path, name).folder / "run.json", (age, age))
    (tmp_path / "runs" / "latest").unlink()
    assert latest_run(tmp_path / "runs").name == "a"


def test_a_run_without_newer_keys_is_read_with_their_defaults(run: Run) -> None:
    file = run.folder / "run.json"
    stored = json.loads(file.read_text())
    newer = ("temperature", "operating_point", "ensemble", "reading", "audit")
    file.write_text(json.dumps({**{key: value for key, value in stored.items() if key not in newer}, "later": 1}))
    old = open_run(run.folder)
    assert (old.temperature, *(getattr(old, key) for key in newer[1:])) == (1.0, None, None, None, None)
    assert old.metrics == run.metrics


def test_a_failed_training_leaves_no_folder(make_cache: MakeCache, tmp_path: Path) -> None:
    features = cloud(np.arange(180) % 2)
    features[5, 3] = np.nan
    with pytest.raises(CacheError, match=r"not finite, or above 1e\+14 \(1\): normal/0005\.png"):
        trained(make_cache(features=features), tmp_path)
    assert not (tmp_path / "runs").exists()


def test_an_operating_point_that_cannot_be_chosen_is_refused_before_the_first_epoch(
    make_cache: MakeCache, tmp_path: Path
) -> None:
    epochs: list[EpochRecord] = []
    cache = make_cache(labels=[0, 1] * 50 + [1] * 40 + [0, 1] * 20)
    for positive, words in (("flu", "there is no class flu"), ("covid", "no validation image of class covid")):
        options = TrainOptions(target=TargetSpec(positive=positive), progress=epochs.append)
        with pytest.raises(DataError, match=words):
            train_run(cache, HeadSpec(hidden=()), TrainSpec(epochs=1), runs=tmp_path / "runs", options=options)
    assert not epochs
    assert not (tmp_path / "runs").exists()


def test_a_file_where_the_runs_should_be_is_named(make_cache: MakeCache, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(OutputError, match="cannot be written: its parent folder is a file") as problem:
        trained(make_cache(), tmp_path)
    assert problem.value.fix == "choose another place with --runs"


def test_a_failing_training_leaves_the_runs_that_are_there(make_cache: MakeCache, tmp_path: Path) -> None:
    run = trained(make_cache(), tmp_path)
    with pytest.raises(DataError, match="there is no class flu"):
        trained(make_cache("other.h5"), tmp_path, "second", target=TargetSpec(positive="flu"))
    assert {path.name for path in run.folder.parent.iterdir()} == {"first", "latest"}


def test_two_writers_with_one_process_number_do_not_share_a_folder(tmp_path: Path) -> None:
    """As in two containers on one disk."""
    assert RunWriter(tmp_path, "a").folder != RunWriter(tmp_path, "a").folder


def test_a_run_is_on_disk_before_it_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = []
    target = tmp_path / "runs" / "a"
    monkeypatch.setattr("xfeat.head.runs.writer.flush", lambda path: flushed.append((path.name, target.exists())))
    with RunWriter(target.parent, "a") as writer:
        writer.save_text("report.html", "")
        writer.save_text("history.csv", "")
    assert {name for name, shown in flushed if not shown} == {"report.html", "history.csv", writer.folder.name}
    assert [name for name, shown in flushed if shown] == ["runs"]


def test_what_a_killed_training_left_is_not_the_latest_run(tmp_path: Path) -> None:
    (tmp_path / ".a.123-00.tmp").mkdir()
    (tmp_path / ".a.123-00.tmp" / "run.json").write_text("{}")
    with pytest.raises(RunError, match="no training run found in this folder"):
        latest_run(tmp_path)


def test_a_cache_written_into_while_a_head_trains_on_it_is_named(make_cache: MakeCache, tmp_path: Path) -> None:
    """As ``cp`` writes: into the file, and not in its place."""
    cache, content = make_cache(), make_cache("other.h5", separation=2.0).path.read_bytes()
    with pytest.raises(CacheError, match="the file was overwritten with another cache while it was read"):
        trained(cache, tmp_path, progress=lambda record: cache.path.write_bytes(content))
    with pytest.raises(CacheError, match="cut short"):
        trained(make_cache(), tmp_path, progress=lambda record: os.truncate(cache.path, 4096))
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("change", ["replaced", "touched", "gone"])
def test_a_cache_that_is_replaced_while_a_head_trains_on_it_does_no_harm(
    make_cache: MakeCache, tmp_path: Path, change: str
) -> None:
    cache, other = make_cache(), make_cache("other.h5", separation=2.0).path
    wanted = trained(cache, tmp_path, "undisturbed").metrics

    def disturb(record: EpochRecord) -> None:
        if record.epoch == 1:
            {"replaced": lambda: other.replace(cache.path), "touched": cache.path.touch, "gone": cache.path.unlink}[
                change
            ]()

    assert trained(cache, tmp_path, progress=disturb).metrics == wanted


LONG = """
import sys
from dataclasses import replace
from pathlib import Path
from xfeat.head.runs.writer import RunWriter
with RunWriter(Path("runs"), sys.argv[1]) as writer:
    writer.save_text("history.csv", "half")
    print("writing", flush=True)
    sys.stdin.read()
"""


def start_writing(name: str, folder: Path) -> subprocess.Popen[str]:
    """Start a training that is at it until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", LONG, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=folder, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def test_what_a_killed_training_left_goes_with_the_next_and_a_living_one_is_let_be(
    make_cache: MakeCache, tmp_path: Path
) -> None:
    cache = make_cache()
    with start_writing("living", tmp_path) as living:
        with start_writing("killed", tmp_path) as killed:
            killed.kill()
        elsewhere = tmp_path / "runs" / ".a.another-machine-0123abcd.tmp"
        elsewhere.mkdir()
        elsewhere.with_suffix(".lock").touch()
        assert len(list((tmp_path / "runs").glob(".killed.*"))) == 2  # and the lock of its name
        trained(cache, tmp_path)
        assert not list((tmp_path / "runs").glob(".killed.*"))
        [unfinished] = (tmp_path / "runs").glob(".living.*.tmp")
        assert (unfinished / "history.csv").read_text() == "half"
        living.communicate("")
    names = {path.name for path in (tmp_path / "runs").iterdir()}
    assert names == {"first", "living", "latest", elsewhere.name, elsewhere.with_suffix(".lock").name}


def test_of_two_trainings_with_one_name_the_second_is_refused_at_once(make_cache: MakeCache, tmp_path: Path) -> None:
    with start_writing("taken", tmp_path) as first:
        with pytest.raises(BusyError, match="another training is using this name"):
            trained(make_cache(), tmp_path, "taken")
        first.communicate("")
    with pytest.raises(RunError, match="a run with this name already exists"):
        trained(make_cache(), tmp_path, "taken")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["latest", "taken"]


def test_one_image_in_a_class_trains(make_cache: MakeCache, tmp_path: Path) -> None:
    labels = [0] * 49 + [1] + [0] * 20
    run = trained(make_cache(split=[0] * 50 + [1] * 10 + [2] * 10, labels=labels), tmp_path)
    assert run.metrics["test"]["auc"] is None
    assert "only" in run.calibration["note"] or "fewer" in run.calibration["note"]


@pytest.mark.slow
def test_half_precision_features_train(make_cache: MakeCache, tmp_path: Path) -> None:
    cache = make_cache()
    halved = trained(make_cache("half.h5", features=np.asarray(cache.features, np.float16)), tmp_path, "half")
    assert abs(halved.metrics["test"]["loss"] - trained(cache, tmp_path).metrics["test"]["loss"]) < 0.02
