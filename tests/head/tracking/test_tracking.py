"""What MLflow and TensorBoard hold afterwards, read back with the libraries' own readers from local stores."""

from __future__ import annotations

import csv
import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.head.conftest import MakeCache
from xfeat.featurize.errors import MissingExtraError
from xfeat.head.cli import main
from xfeat.head.runs.reader import Run, latest_run, open_run
from xfeat.head.tracking.backends import open_trackers, tracked
from xfeat.head.tracking.tracker import Metrics

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _in_a_fresh_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # what the tracker sets for its process must not stay in this one
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, "1")


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without experiments: making its tables takes seconds, copying it does not."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    connect(file).search_experiments()
    return file


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(empty_store, tmp_path / "mlflow.db"))


def connect(file: Path) -> Any:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow.tracking import MlflowClient

        return MlflowClient(tracking_uri=f"sqlite:///{file}")


def recorded(file: Path, filter_string: str = "") -> list[Any]:
    client = connect(file)
    return list(client.search_runs([client.get_experiment_by_name("xfeat").experiment_id], filter_string))


def xhead(*arguments: str) -> Result:
    done = CliRunner().invoke(main, [*arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def newest() -> Run:
    return open_run(latest_run(Path("runs")))


def epochs(run: Run) -> list[dict[str, str]]:
    return list(csv.DictReader((run.folder / "history.csv").read_text().splitlines()))


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def hyperparameters(folder: Path) -> dict[str, Any]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    found = EventAccumulator(str(folder)).Reload().summary_metadata["_hparams_/session_start_info"]
    values = HParamsPluginData.FromString(found.plugin_data.content).session_start_info.hparams
    return {name: getattr(value, str(value.WhichOneof("kind"))) for name, value in values.items()}


@pytest.mark.slow
def test_mlflow_holds_settings_epochs_final_figures_and_files(make_cache: MakeCache, store: Path) -> None:
    """Reference: the run folder."""
    cache = make_cache()
    options = ("--epochs", "3", "--hidden", "8,4", "--lr", "0.002", "--positive", "covid", "--name", "one")
    done = xhead("train", *options, "--mlflow", f"sqlite:///{store}")
    assert done.exit_code == 0, done.stderr
    run, [found] = newest(), recorded(store)
    assert (found.info.run_name, found.info.status) == ("one", "FINISHED")
    wanted = {"hidden": "8,4", "lr": "0.002", "epochs": "3", "seed": "0", "backbone": "efficientnet-lite0"}
    assert wanted.items() <= found.data.params.items()
    assert found.data.params["cache_sha256"] == cache.content_sha256
    for name in ("accuracy", "loss", "auc", "brier"):
        assert found.data.metrics[f"test/{name}"] == run.metrics["test"][name]
        assert found.data.metrics[f"valid/final_{name}"] == run.metrics["valid"][name]
    assert found.data.metrics["test/sensitivity/covid"] == run.metrics["test"]["classes"]["covid"]["sensitivity"]
    assert found.data.metrics["threshold"] == run.operating_point.threshold
    history = epochs(run)
    for name in ("train_loss", "train_accuracy", "valid_loss", "valid_accuracy"):
        curve = connect(store).get_metric_history(found.info.run_id, name.replace("_", "/"))
        assert [(m.step, m.value) for m in curve] == [(int(row["epoch"]), float(row[name])) for row in history]
    kept = Path(found.info.artifact_uri)
    assert {file.name for file in kept.iterdir()} == {file.name for file in run.folder.iterdir()}
    assert (kept / "head.safetensors").read_bytes() == (run.folder / "head.safetensors").read_bytes()


@pytest.mark.slow
def test_tensorboard_holds_epochs_settings_and_final_figures(make_cache: MakeCache) -> None:
    """Reference: the run folder; event files hold float32."""
    make_cache()
    assert xhead("train", "--epochs", "3", "--tensorboard").exit_code == 0
    run = newest()
    folder = Path("runs", "tensorboard", run.name)
    found = scalars(folder)
    history = epochs(run)
    assert [step for step, _ in found["valid/loss"]] == [1, 2, 3]
    assert [value for _, value in found["valid/loss"]] == pytest.approx([float(r["valid_loss"]) for r in history])
    assert found["test/accuracy"][0][1] == pytest.approx(run.metrics["test"]["accuracy"])
    assert {"hidden": "512,128", "lr": 5e-4, "pooling": "final"}.items() <= hyperparameters(folder).items()


@pytest.mark.slow
def test_a_sweep_is_a_run_with_one_child_run_per_trial_and_resumes_its_record(
    make_cache: MakeCache, store: Path
) -> None:
    make_cache()
    command = ("sweep", "--lr", "0.001,0.01,1e-4", "--hidden", "linear", "--dropout", "0", "--epochs", "1", "--json")
    command = (*command, "--mlflow", f"sqlite:///{store}", "--tensorboard")
    assert xhead(*command, "--trials", "2").exit_code == 0
    done = xhead(*command, "--trials", "3")
    answer = json.loads(done.stdout)
    [parent] = recorded(store, "tags.xfeat.key LIKE '%'")
    children = recorded(store, f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    assert sorted(child.info.run_name for child in children) == [f"trial-{number:05d}" for number in range(3)]
    assert {child.data.params["lr"] for child in children} == {"0.001", "0.01", "0.0001"}
    assert {child.info.status for child in (parent, *children)} == {"FINISHED"}
    best = next(c for c in children if c.info.run_name == f"trial-{answer['best_trial']:05d}")
    assert best.data.metrics["valid/loss"] == answer["leaders"][0]["valid"]["loss"]
    assert parent.data.metrics["test/accuracy"] == answer["metrics"]["test"]["accuracy"]
    kept = Path(parent.info.artifact_uri)
    assert {"results.csv", "sweep.json", Path(answer["run"]).name} <= {file.name for file in kept.iterdir()}
    assert (kept / Path(answer["run"]).name / "report.html").is_file()
    folder = Path("runs", "tensorboard", Path(answer["sweep"]).name)
    assert hyperparameters(folder / best.info.run_name)["lr"] == pytest.approx(float(best.data.params["lr"]))
    assert all(len(list(child.iterdir())) == 1 for child in folder.iterdir() if child.is_dir())


@pytest.mark.slow
def test_trials_of_an_untracked_sweep_are_recorded_later(make_cache: MakeCache, store: Path) -> None:
    make_cache()
    command = ("sweep", "--lr", "0.001,0.01", "--hidden", "linear", "--dropout", "0", "--epochs", "1")
    assert xhead(*command).exit_code == 0
    assert xhead(*command, "--mlflow", f"sqlite:///{store}").exit_code == 0
    assert len(recorded(store)) == 3


@pytest.mark.slow
def test_a_cross_validation_is_a_run_with_one_step_per_fold(make_cache: MakeCache, store: Path) -> None:
    make_cache()
    options = "--folds 3 --seeds 2 --epochs 1 --hidden linear --json"
    done = xhead("crossval", *options.split(), "--mlflow", f"sqlite:///{store}")
    answer, [found] = json.loads(done.stdout), recorded(store)
    curve = connect(store).get_metric_history(found.info.run_id, "grouped/accuracy_of_fold")
    assert [m.value for m in sorted(curve, key=lambda m: m.step)] == answer["accuracy"]["folds"]
    assert found.data.metrics["grouped/accuracy_mean"] == answer["accuracy"]["mean"]
    assert found.data.metrics["out_of_fold/auc"] == answer["metrics"]["auc"]
    assert found.data.params["folds"] == "3"
    stored = Path(found.info.artifact_uri, "predictions.csv").read_bytes()
    assert stored == Path(answer["crossval"], "predictions.csv").read_bytes()


@pytest.mark.parametrize("command", ["train", "sweep", "crossval"])
def test_an_unreachable_server_is_one_message_before_training(make_cache: MakeCache, command: str) -> None:
    make_cache()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        done = xhead(command, "--mlflow", f"http://me:secret@127.0.0.1:{taken.getsockname()[1]}")
    assert done.exit_code == 1
    assert "MLflow cannot be reached at this address" in done.stderr
    assert "secret" not in done.output
    assert not Path("runs").exists()


@pytest.mark.parametrize(("uri", "words"), [("bogus://x", "unsupported URI"), ("mlruns", "sqlite:///mlflow.db")])
def test_an_invalid_address_is_one_message(make_cache: MakeCache, uri: str, words: str) -> None:
    make_cache()
    done = xhead("train", "--mlflow", uri)
    assert done.exit_code == 1
    assert words in done.stderr
    assert done.stderr.count("error:") == 1
    assert not Path("runs").exists()


def test_a_folder_that_cannot_be_made_is_one_message(make_cache: MakeCache, tmp_path: Path) -> None:
    make_cache()
    (tmp_path / "file").write_text("")
    done = xhead("train", "--tensorboard", str(tmp_path / "file" / "events"))
    assert done.exit_code == 1
    assert "choose another place with --tensorboard" in done.stderr
    assert not Path("runs").exists()


@pytest.mark.parametrize("command", [("train",), ("crossval", "--folds", "500")])
def test_a_refused_training_leaves_no_record(make_cache: MakeCache, store: Path, command: tuple[str, ...]) -> None:
    make_cache(**({"classes": ("covid",)} if command == ("train",) else {}))
    assert xhead(*command, "--mlflow", f"sqlite:///{store}", "--tensorboard").exit_code == 1
    assert recorded(store) == []
    assert not list(Path("runs", "tensorboard").iterdir())


def session_status(folder: Path) -> str:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.api_pb2 import Status
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    found = EventAccumulator(str(folder)).Reload().summary_metadata["_hparams_/session_end_info"]
    return str(Status.Name(HParamsPluginData.FromString(found.plugin_data.content).session_end_info.status))


STOPPABLE = {
    "train": ("train",),
    "ensemble": ("train", "--name", "one", "--ensemble", "2"),
    "crossval": ("crossval", "--folds", "3"),
    "crossval of ensembles": ("crossval", "--folds", "3", "--ensemble", "2"),
}
QUICK = {("train", "FAILED"), ("ensemble", "KILLED"), ("crossval", "FAILED")}


@pytest.mark.parametrize(
    ("command", "ending"),
    [
        pytest.param(command, ending, marks=() if (command, ending) in QUICK else pytest.mark.slow)
        for command in STOPPABLE
        for ending in ("FAILED", "KILLED", "FINISHED")
        if (command, ending) != ("train", "KILLED")
    ],
)
def test_how_it_ended_is_recorded(
    make_cache: MakeCache, store: Path, monkeypatch: pytest.MonkeyPatch, command: str, ending: str
) -> None:
    make_cache()

    def stop(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    if ending == "KILLED":  # by Ctrl-C, when the second head is trained
        monkeypatch.setattr("xfeat.head.training.ensemble.average_of", stop)
        monkeypatch.setattr("xfeat.head.crossval.training.softmax", stop)
    options = ("--epochs", "1", "--hidden", "linear", "--lr", "1e38" if ending == "FAILED" else "0.01")
    done = xhead(*STOPPABLE[command], *options, "--mlflow", f"sqlite:///{store}", "--tensorboard", "events")
    assert done.exit_code == {"FAILED": 1, "KILLED": 130, "FINISHED": 0}[ending], done.output
    [found] = recorded(store)
    assert found.info.status == ending
    [folder] = Path("events").iterdir()
    assert session_status(folder) == ("STATUS_SUCCESS" if ending == "FINISHED" else "STATUS_FAILURE")
    assert hyperparameters(folder)["hidden"] == "linear"


@pytest.mark.slow
def test_event_files_go_into_the_current_folder_when_a_dot_says_so(make_cache: MakeCache) -> None:
    make_cache()
    command = ("crossval", "--folds", "2", "--epochs", "1", "--hidden", "linear")
    assert xhead(*command, "--tensorboard", ".").exit_code == 0
    [folder] = Path().glob("crossval-*")
    assert "grouped/accuracy_of_fold" in scalars(folder)
    assert not Path("runs", "tensorboard").exists()


@pytest.mark.slow
def test_a_store_that_fails_is_a_warning_and_does_not_stop_the_training(
    make_cache: MakeCache, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tables go after the first check, as a server may."""
    import sqlite3

    from xfeat.head.tracking import mlflow_tracker

    reached = mlflow_tracker.MlflowTracker._find_experiment

    def reached_once(tracker: mlflow_tracker.MlflowTracker, uri: str) -> str:
        found = reached(tracker, uri)
        connection = sqlite3.connect(store)
        connection.execute("DROP TABLE runs")
        connection.close()
        return found

    monkeypatch.setattr(mlflow_tracker.MlflowTracker, "_find_experiment", reached_once)
    make_cache()
    done = xhead("train", "--epochs", "2", "--mlflow", f"sqlite:///{store}", "--tensorboard")
    assert done.exit_code == 0
    assert done.stderr.count("tracking in MLflow failed and stops here") == 1
    assert newest().epochs == 2
    assert len(scalars(Path("runs", "tensorboard", newest().name))["valid/loss"]) == 2


@pytest.mark.parametrize(("absent", "extra"), [("mlflow", "mlflow"), ("sqlalchemy", "mlflow"), ("psycopg", "")])
def test_a_missing_library_is_named_with_its_extra(
    absent: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow.tracking

    def halted(**kwargs: object) -> None:
        raise ModuleNotFoundError(f"No module named {absent!r}", name=absent)

    monkeypatch.setattr(mlflow.tracking, "MlflowClient", halted)
    package = f"'xfeat-onnx[{extra}]'" if extra else absent
    with pytest.raises(MissingExtraError, match=re.escape(f"pip install {package}")):
        open_trackers(mlflow="sqlite:///a.db")


def test_a_missing_tensorboard_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'xfeat-onnx\[tensorboard\]'"):
        open_trackers(tensorboard=tmp_path)


def test_more_metrics_than_a_request_takes_are_sent_in_several(store: Path) -> None:
    """A thousand epochs within a second."""
    [tracker] = open_trackers(mlflow=f"sqlite:///{store}")
    metrics: Sequence[Metrics] = [{"a": step, "b": 2 * step} for step in range(1000)]
    with tracked([tracker], "long", {}) as tracking:
        for step, figures in enumerate(metrics):
            tracking.record(step, figures)
        tracking.end({})
    [found] = recorded(store)
    assert len(connect(store).get_metric_history(found.info.run_id, "b")) == 1000


@pytest.mark.slow
def test_nothing_is_imported_unless_it_is_asked_for(make_cache: MakeCache) -> None:
    make_cache()
    program = (
        "import sys; from xfeat.head.cli import main; main(['train', '--epochs', '1'], standalone_mode=False);"
        "sys.exit(', '.join({'mlflow', 'tensorboard', 'xfeat.head.tracking.mlflow_tracker', 'sqlalchemy'} "
        "& set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
