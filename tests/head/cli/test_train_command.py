"""``xhead train`` as a user meets it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.head.conftest import MakeCache
from xfeat.head.cli import main
from xfeat.head.runs.reader import latest_run


@pytest.fixture(autouse=True)
def _in_a_fresh_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def xhead(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["train", *arguments])


def test_it_runs_without_options_and_says_where_the_report_is(make_cache: MakeCache, tmp_path: Path) -> None:
    make_cache()
    done = xhead("--epochs", "2")
    assert done.exit_code == 0, done.stderr
    run = latest_run(tmp_path / "runs")
    assert f"report: runs/{run.name}/report.html" in done.stdout
    assert re.search(r"test: 40 images, accuracy \d+\.\d % \(", done.stdout)
    assert "has not been audited" in done.stderr
    assert "warning" not in done.stdout


def test_json_is_one_object_with_the_keys_of_the_contract(make_cache: MakeCache) -> None:
    make_cache()
    done = xhead("--epochs", "2", "--json")
    answer = json.loads(done.stdout)
    assert Path(answer["run"], "run.json").is_file()
    assert answer["classes"] == ["covid", "normal"]
    assert answer["epochs"] == 2
    assert answer["best_epoch"] in (1, 2)
    assert set(answer["metrics"]) == {"train", "valid", "test"}
    test = answer["metrics"]["test"]
    assert {"accuracy", "loss", "auc", "confusion_matrix"} <= set(test)
    assert sum(map(sum, test["confusion_matrix"])) == 40
    assert answer["temperature"] > 0
    assert answer["operating_point"] is None


@pytest.mark.slow
def test_the_operating_point_is_in_text_json_and_run(make_cache: MakeCache) -> None:
    make_cache(separation=0.3)
    options = ("--epochs", "2", "--positive", "covid", "--target-sensitivity", "0.99")
    answer = json.loads(xhead(*options, "--json").stdout)
    point = answer["operating_point"]
    assert point == json.loads(Path(answer["run"], "run.json").read_text())["operating_point"]
    assert point["positive"] == "covid"
    assert point["valid"]["sensitivity"]["value"] >= 0.99
    assert len(point["test"]["sensitivity"]["interval"]) == 2
    text = xhead(*options)
    assert f"covid if probability ≥ {point['threshold']:.4f}" in text.stdout
    assert "20 positive images are too few to claim a sensitivity of 0.99" in text.stderr
    assert "prevalence of 1.0 %" in text.stdout


@pytest.mark.slow
def test_without_calibration_the_temperature_is_1(make_cache: MakeCache) -> None:
    make_cache()
    answer = json.loads(xhead("--epochs", "1", "--no-calibrate", "--json").stdout)
    assert answer["temperature"] == 1
    assert answer["calibration"]["before"] == answer["calibration"]["after"]


def assert_one_message(done: Result, code: int, *words: str) -> None:
    assert done.exit_code == code, done.output
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_a_missing_cache_is_named_with_its_fix() -> None:
    assert_one_message(xhead(), 1, "features.h5: feature cache not found", "xfeat featurize")


def test_a_folder_of_images_as_a_cache_is_named_with_its_fix(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    assert_one_message(xhead("--features", "images"), 1, "a folder, not a feature cache", "xfeat featurize images")


def test_a_text_file_as_a_cache_is_named(tmp_path: Path) -> None:
    (tmp_path / "features.h5").write_text("not a cache")
    assert_one_message(xhead(), 1, "not a feature cache")


def test_a_cut_cache_is_named(make_cache: MakeCache) -> None:
    file = make_cache().path
    file.write_bytes(file.read_bytes()[:3000])
    assert_one_message(xhead(), 1, "features.h5", "fix")


def test_one_class_is_named(make_cache: MakeCache) -> None:
    make_cache(classes=("covid",))
    assert_one_message(xhead(), 1, "at least two classes")


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--lr", "0"), 2, "learning rate must be positive"),
        (("--lr", "fast"), 2, "not a valid float"),
        (("--epochs", "0"), 2, "too few epochs"),
        (("--batch-size", "1"), 2, "two rows per batch"),
        (("--dropout", "1"), 2, "dropout out of range"),
        (("--hidden", "a,b"), 2, "512,128"),
        (("--hidden", "0"), 2, "bad width"),
        (("--class-weight", "heavy"), 2, "heavy"),
        (("--target-sensitivity", "0.9"), 2, "needs --positive"),
        (("--positive", "covid", "--target-sensitivity", "9"), 2, "0 < P ≤ 1"),
        (("--positive", "flu"), 1, "there is no class flu"),
        (("--lr", "1e38"), 1, "diverged"),
        (("--name", "a/b"), 1, "not a valid name for a run"),
    ],
)
def test_a_bad_option_is_one_message_and_leaves_nothing(
    make_cache: MakeCache, tmp_path: Path, options: tuple[str, ...], code: int, words: str
) -> None:
    make_cache()
    assert_one_message(xhead(*options), code, words)
    assert not list(tmp_path.glob("runs/*"))
