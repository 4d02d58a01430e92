"""A project is found again after a move: rows are what was moved, and the commands that read what it stores."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from tests.caches import header_of
from tests.conftest import MadeOnce
from tests.export.conftest import invoke
from tests.inputs.moved_projects import MOVES, SWEEP, Move, make_moved, stored_paths
from tests.pipeline.conftest import shell_in
from xfeat.export.cli import main as xexport
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.cli import main as xfeat
from xfeat.featurize.errors import CacheError, DataError, MismatchError, RunError
from xfeat.head.cli import main as xhead
from xfeat.head.runs.inputs import find_images, find_run, open_cache_of, search_cache, weights_of, with_cache
from xfeat.head.runs.reader import Run, latest_run, open_run

pytestmark = pytest.mark.slow
FEATURIZE = ("--backbone", "efficientnet-lite0", "--weights", "weights.pth", "--size", "64", "--engine", "torch")


@pytest.fixture(scope="session")
def elsewhere(made_once: MadeOnce) -> Path:
    return made_once("moved", make_moved) / "elsewhere" / "project"


@pytest.fixture
def project(elsewhere: Path, tmp_path: Path) -> Path:
    """A project in a folder of its own, whose files were written in one that does not exist."""
    return Path(shutil.copytree(elsewhere, tmp_path / "parent" / "project", symlinks=True))


@pytest.fixture
def free(tmp_path: Path) -> Path:
    (tmp_path / "free").mkdir()
    return tmp_path / "free"


def answer(command: object, *arguments: object) -> str:
    done = invoke(command, *arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def run_in(folder: Path) -> Run:
    [file] = list(folder.rglob("first/run.json")) or [folder / "runs" / "first" / "run.json"]
    return open_run(file.parent)


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_paths_within_a_project_are_stored_relative(elsewhere: Path) -> None:
    stored = stored_paths(elsewhere)
    assert len(stored) == 11
    assert {path.rpartition("/")[0] for path in stored.values()} == {"", "../.."}
    assert {path.rpartition("/")[2] for path in stored.values()} == {"features.h5", "data", "weights.pth"}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_what_a_run_names_is_found_after_a_move(move: Move, project: Path, free: Path) -> None:
    """Reference: the bytes of what the original project had."""
    wanted = FeatureCache.open(project / "features.h5").content_sha256
    images = {name: digest(project / "data" / name) for name in ("train/bar/0.png", "test/disc/3.png")}
    weights = digest(project / "weights.pth")
    moved = move(project, free)
    run = run_in(moved)
    cache = open_cache_of(run)
    assert cache.content_sha256 == wanted
    for root in (cache.images.path, find_images(run)):
        assert root is not None
        if root.is_dir():
            assert {name: digest(root / name) for name in images} == images
        else:
            assert root == moved / "data.zip"
    assert digest(weights_of(run).path) == weights


def test_a_copy_beside_the_original_uses_its_own_files(project: Path, free: Path) -> None:
    run = run_in(MOVES["beside_the_original"](project, free))
    copy = free / "copy"
    assert (search_cache(run).path, find_images(run)) == (copy / "features.h5", copy / "data")
    assert weights_of(run).path == copy / "weights.pth"
    shutil.rmtree(project)
    assert (search_cache(run).path, find_images(run)) == (copy / "features.h5", copy / "data")


def test_a_copy_of_latest_does_not_hide_newer_runs(project: Path, free: Path) -> None:
    """File systems without links turn ``latest`` into a folder, and copies may all have the same time."""
    moved = Path(shutil.copytree(project, free / "copy", symlinks=False, copy_function=shutil.copyfile))
    newest = max(json.loads(file.read_text())["created"] for file in moved.glob("runs/*/run.json"))
    (moved / "runs" / "first" / "run.json").touch()
    assert not (moved / "runs" / "latest").is_symlink()
    found = latest_run(moved / "runs")
    assert (open_run(found).created, found.name) == (newest, open_run(found).name)


def test_other_features_are_refused(project: Path) -> None:
    run = run_in(project)
    other = MOVES["with_another_cache_in_its_place"](project, project) / "features.h5"
    (project / "old.h5").unlink()
    digest_there = FeatureCache.open(other).content_sha256
    search = search_cache(run)
    assert (search.path, search.refused) == (None, other)
    assert f"{other}: other features, of SHA-256 {digest_there[:16]}" in search.report
    with pytest.raises(MismatchError, match="run first was trained on others"):
        with_cache([run], other)


def test_other_images_are_refused(project: Path) -> None:
    run = run_in(MOVES["with_other_images_in_their_place"](project, project))
    shutil.rmtree(project / "old")
    for data in (None, project / "data"):
        with pytest.raises(DataError, match="all have another content") as refused:
            find_images(run, data)
        assert "--data DIR" in str(refused.value)
    assert open_cache_of(run).images.path is None


def test_what_is_gone_is_an_error_that_says_where_was_looked(project: Path) -> None:
    run = run_in(project)
    shutil.rmtree(project / "data")
    with pytest.raises(DataError, match="images of the run were not found") as gone:
        find_images(run)
    assert f"{project / 'data'}: nothing there" in str(gone.value)
    assert "/written/project/data: nothing there" in str(gone.value)
    (project / "features.h5").unlink()
    with pytest.raises(CacheError, match="features that the run was trained on are missing") as missing:
        open_cache_of(run)
    assert f"{project / 'features.h5'}: nothing there" in str(missing.value)
    assert "--features PATH" in str(missing.value)
    with pytest.raises(RunError, match="the run of the model was not found"):
        find_run("second", "0" * 64, runs=project / "runs", near=project / "model.onnx")


def test_without_the_cache_images_are_taken_from_their_place_only_and_that_is_said(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_in(project)
    (project / "features.h5").unlink()
    assert find_images(run) == project / "data"
    assert "the cache was not found" in caplog.text
    (project / "data").rename(project / "pictures")
    with pytest.raises(DataError, match="not found"):
        find_images(run)


@pytest.mark.parametrize("name", ["runs/first", "renamed", "runs/other name"])
def test_the_run_of_a_model_is_found_beside_it(project: Path, name: str, tmp_path: Path) -> None:
    run = run_in(project)
    run.folder.rename(project / name)
    found = find_run("first", run.head_sha256, runs=tmp_path / "runs", near=project / "model.onnx")
    assert found == project / name


COMMANDS = {
    "info": (xfeat, "info"),
    "verify": (xfeat, "verify"),
    "featurize": (xfeat, "featurize", "data", *FEATURIZE, "--json"),
    "audit": (xfeat, "audit"),
    "train": (xhead, "train", "--epochs", "2", "--name", "second"),
    "crossval": (xhead, "crossval", "--folds", "3", "--epochs", "2", "--hidden", "linear"),
    "sweep": (xhead, *SWEEP),
    "eval": (xhead, "eval", "runs/first", "features.h5", "--json"),
    "compare": (xhead, "compare", "--baselines"),
    "onnx": (xexport, "onnx", "runs/first", "-o", "again.onnx", "--json"),
    "verify --run": (xexport, "verify", "model.onnx", "--run", "runs/first"),
    "verify --data": (xexport, "verify", "model.onnx", "--data", "data"),
    "quantize": (xexport, "quantize", "model.onnx", "--fp16", "--gate", "100"),
    "explain": (xexport, "explain", "model.onnx", "data/test/disc/0.png"),
}


@pytest.mark.parametrize(
    "move",
    ["deeper", "copied_without_times", "renamed", "seen_through_a_link", "of_an_earlier_version", "of_windows"],
)
def test_every_command_works_in_a_moved_project(
    move: str, project: Path, free: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = MOVES[move](project, free)
    monkeypatch.chdir(moved)
    trials = next(moved.glob("runs/sweep-*/results.csv")).read_bytes()
    said = {name: answer(*command) for name, command in COMMANDS.items()}
    featurized = json.loads(said["featurize"])
    assert (featurized["computed"], featurized["reused"]) == (0, 48)
    assert str(moved.resolve() / "data") in said["info"]
    assert next(moved.glob("runs/sweep-*/results.csv")).read_bytes() == trials, "nothing is trained again"
    assert json.loads(said["eval"])["seen_in_training"], "the images of the training are known"
    assert "logistic regression" in said["compare"]
    assert json.loads(said["onnx"])["ood_threshold"] is not None
    assert json.loads(said["onnx"])["against_torch"]["CPUExecutionProvider"]["full"]["images"] == 12
    assert Path("model.fp16.onnx").is_file()
    assert "absent" not in said["audit"]


def test_a_moved_store_of_mlflow_says_where_it_writes(project: Path, free: Path) -> None:
    """Reference: the folder that MLflow makes anew. In processes of their own, since MLflow keeps a store open."""
    pytest.importorskip("mlflow")
    train = ("xhead", "train", "--epochs", "1", "--mlflow", "sqlite:///mlflow.db")
    assert "store was moved" not in shell_in(project)(*train).stderr
    moved = project.rename(free / "moved")
    assert f"writes the files of runs to {project / 'mlruns'}" in shell_in(moved)(*train).stderr
    assert (project / "mlruns").is_dir()


def test_a_moved_project_is_updated_by_featurize(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are trusted again after the images have been read once in their new place."""
    monkeypatch.chdir(project)
    for rehashed, up_to_date in ((48, False), (0, True)):
        found = json.loads(answer(xfeat, "featurize", "data", *FEATURIZE, "--json"))
        assert (found["computed"], found["rehashed"], found["up_to_date"]) == (0, rehashed, up_to_date)
    stored = header_of(Path("features.h5"))
    assert (stored["data_root"], stored["written_in"]) == ("data", str(project))
    assert run_in(project).cache["content_sha256"] == FeatureCache.open("features.h5").content_sha256
