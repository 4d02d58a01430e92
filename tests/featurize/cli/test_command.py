"""``xfeat`` as a user types it: exit codes, one JSON object, messages with the way out."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner, Result

from xfeat.featurize.backbones.weights import Weights
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.cli import main

LITE0 = ("--backbone", "efficientnet-lite0", "--size", "32")

Xfeat = Callable[..., Result]


@pytest.fixture
def xfeat(lite0_at_32: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Xfeat:
    """Return a function that runs xfeat in an empty folder and checks its exit code."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, exit_code: int = 0) -> Result:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert result.exit_code == exit_code, result.output + repr(result.exception)
        assert "Traceback" not in result.output
        return result

    return run


@pytest.fixture
def data(tmp_path: Path, art: SimpleNamespace) -> Path:
    return art.draw_folder(tmp_path / "data", count=3)


def as_json(result: Result) -> dict[str, Any]:
    answer = json.loads(result.stdout)
    assert isinstance(answer, dict)
    return answer


def test_featurize_info_and_verify_chain_without_options_between(xfeat: Xfeat, data: Path) -> None:
    done = as_json(xfeat("featurize", data, *LITE0, "--json"))
    assert {key: done[key] for key in ("output", "backbone", "images", "computed", "reused", "skipped")} == {
        "output": "features.h5",
        "backbone": "efficientnet-lite0",
        "images": 6,
        "computed": 6,
        "reused": 0,
        "skipped": 0,
    }
    assert done["images_per_second"] > 0
    assert done["engine"] == "onnxruntime on cpu"
    told = as_json(xfeat("info", "--json"))
    assert (told["images"], told["features"], told["views"]) == (6, 1280, 1)
    assert told["counts"] == {"none": {"covid": 3, "normal": 3}}
    assert told["fingerprint"] == done["fingerprint"]
    assert as_json(xfeat("verify", "--json")) == {"file": "features.h5", "images": 6, "ok": True}
    assert "6 rows, all finite and unchanged" in xfeat("verify").stdout
    assert "covid 3  normal 3" in xfeat("info").stdout


def test_auto_keeps_the_backbone_that_the_output_has(xfeat: Xfeat, data: Path) -> None:
    xfeat("featurize", data, *LITE0)
    again = as_json(xfeat("featurize", data, "--size", 32, "--json"))
    assert (again["backbone"], again["up_to_date"], again["computed"]) == ("efficientnet-lite0", True, 0)
    assert "is up to date" in xfeat("featurize", data, "--size", 32).stdout


def test_other_settings_than_the_outputs_are_refused_with_the_fix(xfeat: Xfeat, data: Path) -> None:
    xfeat("featurize", data, *LITE0)
    before = Path("features.h5").read_bytes()
    refused = xfeat("featurize", data, *LITE0, "--normalize", "imagenet", "--dtype", "float16", exit_code=1)
    assert "other settings" in refused.stderr
    assert "--force" in refused.stderr
    assert refused.stdout == ""
    assert Path("features.h5").read_bytes() == before


def test_other_weights_than_the_outputs_are_refused(xfeat: Xfeat, data: Path, tmp_path: Path) -> None:
    xfeat("featurize", data, *LITE0)
    (tmp_path / "other.pth").write_bytes(b"other")
    refused = xfeat("featurize", data, "--weights", "other.pth", exit_code=1)
    assert "computed with other weights" in refused.stderr


def test_random_b0_weights_from_a_file_with_views_and_half_precision(
    xfeat: Xfeat, data: Path, b0_weights: Weights
) -> None:
    more = ("--backbone", "efficientnet-b0", "--weights", b0_weights.path, "--size", 32, "--engine", "torch")
    done = as_json(
        xfeat("featurize", data, *more, "--views", 3, "--pooling", "multilevel", "--dtype", "float16", "--json")
    )
    assert (done["backbone"], done["engine"]) == ("efficientnet-b0", "torch on cpu")
    cache = FeatureCache.open("features.h5")
    assert (cache.features.shape, cache.features.dtype) == ((6, 3, 2024), np.float16)
    assert np.abs(cache.features[:, 0].astype(float) - cache.features[:, 1]).max() > 0.01
    told = as_json(xfeat("info", "--json"))
    assert (told["features"], told["views"]) == (2024, 3)
    xfeat("verify")


def test_skipped_images_are_named_in_the_summary_and_in_the_cache(
    xfeat: Xfeat, data: Path, art: SimpleNamespace
) -> None:
    (data / "covid/notes.jpg").write_text("a text")
    whole = art.encoded(art.pixels_of(9, 200, 200), "JPEG")
    (data / "covid/cut.jpg").write_bytes(whole[: len(whole) // 2])
    done = xfeat("featurize", data, *LITE0)
    assert "warning: skipped covid/notes.jpg: text, not a JPEG" in done.stderr
    assert "warning: covid/cut.jpg is truncated" in done.stderr
    assert "skipped 1" in done.stdout
    assert "covid/notes.jpg" in xfeat("info").stdout
    assert as_json(xfeat("info", "--json"))["skipped"][0]["path"] == "covid/notes.jpg"
    stopped = xfeat("featurize", data, *LITE0, "--on-error", "fail", exit_code=1)
    assert "notes.jpg" in stopped.stderr
    assert "--on-error skip" in stopped.stderr


def test_many_skipped_images_are_summed_up(xfeat: Xfeat, data: Path) -> None:
    for number in range(14):
        (data / f"covid/bad{number:02d}.jpg").write_text("a text")
    done = xfeat("featurize", data, *LITE0)
    assert done.stderr.count("warning: skipped") == 10
    assert "and 4 more: see xfeat info features.h5" in done.stderr


def test_changes_are_printed(xfeat: Xfeat, data: Path, art: SimpleNamespace) -> None:
    xfeat("featurize", data, *LITE0)
    art.draw(data / "covid/000.png", seed=90)
    art.draw(data / "covid/more.png", seed=91)
    (data / "normal/000.png").unlink()
    assert "1 new, 1 changed, 1 vanished" in xfeat("featurize", data, *LITE0).stdout


def test_images_read_again_are_printed(xfeat: Xfeat, data: Path) -> None:
    xfeat("featurize", data, *LITE0)
    (data / "covid/000.png").chmod(0o600)
    assert "computed 0, reused 6 (1 read again and unchanged), skipped 0\n" in xfeat("featurize", data, *LITE0).stdout
    assert as_json(xfeat("featurize", data, *LITE0, "--json"))["rehashed"] == 0


def test_names_that_are_not_utf8_can_be_shown(xfeat: Xfeat, data: Path) -> None:
    try:
        (data / "covid" / b"\xff.jpg".decode("utf-8", "surrogateescape")).write_bytes(b"no image")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    xfeat("featurize", data, *LITE0)
    assert ".jpg: text, not a JPEG" in xfeat("info").stdout
    assert as_json(xfeat("info", "--json"))["skipped"][0]["path"] == "covid/\udcff.jpg"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("featurize", "nowhere"), "folder or file not found"),
        (("featurize", "data", "--classes", "flu"), "no class called flu"),
        (("featurize", "data", "--weights", "absent.pth"), "weights file not found"),
        (("info", "absent.h5"), "feature cache not found"),
        (("verify", "data/covid/000.png"), "not a feature cache"),
    ],
)
def test_a_problem_is_one_message_and_exit_1(xfeat: Xfeat, data: Path, arguments: tuple[str, ...], said: str) -> None:
    more = LITE0[:2] if arguments[0] == "featurize" else ()
    result = xfeat(*arguments, *more, exit_code=1)
    assert said in result.stderr
    assert result.stderr.count("error:") == 1
    assert result.stdout == ""
    assert sorted(path.name for path in Path().iterdir() if not path.name.startswith(".")) == ["data"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("featurize",),
        ("featurize", "data", "--pooling", "max"),
        ("featurize", "data", "--views", "0"),
        ("featurize", "data", "--batch-size", "0"),
        ("featurize", "data", "--engine", "caffe"),
        ("nonsense",),
    ],
)
def test_wrong_usage_is_exit_2(xfeat: Xfeat, arguments: tuple[str, ...]) -> None:
    assert "Usage:" in xfeat(*arguments, exit_code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("--size", "8"), "image size out of range"), (("--device", "gpu"), "unknown device")],
)
def test_a_setting_out_of_range_is_exit_2_too(xfeat: Xfeat, data: Path, arguments: tuple[str, ...], said: str) -> None:
    assert said in xfeat("featurize", data, *LITE0[:2], *arguments, exit_code=2).stderr


def test_an_output_that_is_no_cache_is_not_replaced(xfeat: Xfeat, data: Path) -> None:
    Path("features.h5").write_text("precious notes")
    result = xfeat("featurize", data, *LITE0, exit_code=1)
    assert "not a feature cache" in result.stderr
    assert Path("features.h5").read_text() == "precious notes"


def test_force_does_not_replace_it_either(xfeat: Xfeat, data: Path) -> None:
    Path("features.h5").write_text("precious notes")
    result = xfeat("featurize", data, *LITE0, "--force", exit_code=1)
    assert "--force replaces only feature caches" in result.stderr
    assert Path("features.h5").read_text() == "precious notes"


def test_verify_says_what_is_wrong(xfeat: Xfeat, data: Path) -> None:
    xfeat("featurize", data, *LITE0)
    with h5py.File("features.h5", "a") as file:
        file["features"][2, 3] += 1
    assert "features or labels have changed" in xfeat("verify", exit_code=1).stderr


def test_the_archive_of_a_folder_is_data_too(xfeat: Xfeat, data: Path) -> None:
    shutil.make_archive("packed", "zip", data)
    done = as_json(xfeat("featurize", "packed.zip", *LITE0, "--json"))
    assert (done["images"], done["skipped"]) == (6, 0)


def test_two_runs_on_two_folders_give_the_same_content(xfeat: Xfeat, data: Path) -> None:
    """A copy elsewhere, with other times, in another engine's batches: the same bits."""
    shutil.copytree(data, "copy")
    for path in Path("copy").rglob("*.png"):
        os.utime(path, (1_500_000_000, 1_500_000_000))
    xfeat("featurize", data, *LITE0, "-o", "a.h5")
    xfeat("featurize", "copy", *LITE0, "-o", "b.h5", "--workers", 1)
    assert FeatureCache.open("a.h5").content_sha256 == FeatureCache.open("b.h5").content_sha256


def test_columns_of_a_table_are_in_the_cache_and_its_description(xfeat: Xfeat, data: Path) -> None:
    rows = [
        f"{label}/{number:03}.png;{30 + number},5;{label[0]}" for label in ("covid", "normal") for number in range(3)
    ]
    Path("patients.csv").write_text("\n".join(["Bild;Alter;Ort", *rows]) + "\n")
    options = ("--metadata", "patients.csv", "--columns", "path=Bild,age=Alter")
    done = as_json(xfeat("featurize", data, *LITE0, *options, "--json"))
    assert done["columns"] == {"age": "number", "Ort": "category"}
    told = as_json(xfeat("info", "--json"))["columns"]
    assert told["age"] == {
        "kind": "number",
        "source": "patients.csv",
        "known": 6,
        "unknown": 0,
        "lowest": 30.5,
        "median": 31.5,
        "highest": 32.5,
    }
    assert told["Ort"]["counts"] == {"c": 3, "n": 3}
    assert "column  Ort  category: c 3, n 3" in xfeat("info").stdout
    refused = xfeat("featurize", data, *LITE0, "--metadata", "patients.csv", exit_code=1)
    assert "no column names images or groups" in refused.output
    assert "--columns path=NAME" in refused.output
