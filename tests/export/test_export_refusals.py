"""Exports that must fail: their messages, and that they change no file."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from safetensors.numpy import load_file, save_file

from tests.edited_runs import edit_run
from tests.export.conftest import invoke
from xfeat.export.build.ood_from_cache import ood_score_from_cache
from xfeat.export.specs import ExportSpec
from xfeat.featurize.backbones.weights import sha256_of
from xfeat.featurize.cli import main as featurize_main

Xexport = Callable[..., Result]
Refused = Callable[..., str]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_trace")]


def snapshot(folder: Path) -> dict[str, str]:
    return {str(file): sha256_of(file) for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture
def refused(xexport: Xexport) -> Callable[..., str]:
    """Run an export that must fail; check that no file appeared, changed or vanished; return its stderr."""

    def run(project: Any, *args: object) -> str:
        before = snapshot(project.folder)
        done = xexport("onnx", project.run.folder, "-o", project.model, *args)
        assert done.exit_code == 1, done.output
        assert done.stdout == ""
        assert done.stderr.count("error: ") == 1
        assert snapshot(project.folder) == before
        return str(done.stderr)

    return run


def edit_facts(project: Any, **changes: object) -> None:
    edit_run(project.folder / "runs" / "first", **changes)


def test_an_export_that_disagrees_with_predictions_csv_fails_and_keeps_the_older_model(
    refused: Refused, copied: Any
) -> None:
    file = copied.run.folder / "predictions.csv"
    lines = file.read_text().splitlines()
    number = next(i for i, line in enumerate(lines) if line.startswith("test/"))
    cells = lines[number].split(",")
    cells[-2:] = ["0.5", "0.5"]
    lines[number] = ",".join(cells)
    file.write_text("\n".join(lines) + "\n")
    said = refused(copied)
    assert "does not give the predictions of the training" in said
    assert "xhead train again" in said


@pytest.mark.parametrize(("difference", "offered"), [(0.02, "--tolerance 0.0"), (0.7, None), (math.nan, None)])
def test_a_tolerance_is_suggested_for_features_of_lower_precision_unless_predictions_may_be_opposite(
    refused: Refused, copied: Any, difference: float, offered: str | None
) -> None:
    """The probabilities in predictions.csv differ by ``difference`` from those of the model."""
    facts = json.loads((copied.run.folder / "run.json").read_text())
    facts["feature_spec"]["precision"] = "bfloat16"
    edit_facts(copied, feature_spec=facts["feature_spec"])
    file = copied.run.folder / "predictions.csv"
    lines = file.read_text().splitlines()
    for number, line in enumerate(lines):
        if line.startswith("test/"):
            *cells, first, second = line.split(",")
            shift = difference if float(first) < float(second) else -difference
            lines[number] = ",".join([*cells, str(float(first) + shift), str(float(second) - shift)])
    file.write_text("\n".join(lines) + "\n")
    said = refused(copied, "--no-ood", "--allow-changed-cache")
    assert "--precision float32" in said
    assert (offered in said) if offered else ("--tolerance" not in said)


def test_a_model_with_another_head_fails_the_comparison_with_torch(refused: Refused, copied: Any) -> None:
    """The trace is that of the original head, as if the exporter had used wrong weights."""
    head = copied.run.folder / "head.safetensors"
    tensors = load_file(head)
    last = max(name for name in tensors if name.endswith("weight"))
    tensors[last] = -tensors[last]
    save_file(tensors, head)
    edit_facts(copied, head_sha256=sha256_of(head))
    said = refused(copied)
    assert "does not give torch's predictions; nothing was written" in said
    assert "decisions changed" in said


def test_weights_that_are_not_numbers_are_refused(refused: Refused, copied: Any) -> None:
    head = copied.run.folder / "head.safetensors"
    tensors = load_file(head)
    last = max(name for name in tensors if name.endswith("bias"))
    tensors[last] = np.full_like(tensors[last], np.nan)
    save_file(tensors, head)
    edit_facts(copied, head_sha256=sha256_of(head))
    assert "head's weights are damaged" in refused(copied)


def test_a_tampered_head_is_recognised_by_its_hash(refused: Refused, copied: Any) -> None:
    head = copied.run.folder / "head.safetensors"
    content = bytearray(head.read_bytes())
    content[-1] ^= 1
    head.write_bytes(content)
    assert "not what was saved" in refused(copied)


def test_other_backbone_weights_than_those_of_the_run_are_refused(refused: Refused, copied: Any) -> None:
    other = copied.folder / "other.pth"
    other.write_bytes(b"other weights")
    said = refused(copied, "--weights", other)
    assert "these are not the backbone weights" in said
    assert "--weights FILE" in said


def test_missing_weights_are_named(refused: Refused, copied: Any) -> None:
    said = refused(copied, "--weights", copied.folder / "nowhere.pth")
    assert "nowhere.pth: weights file not found" in said
    assert "are missing" not in said


def test_a_cache_recomputed_with_other_settings_is_refused_with_a_fix(refused: Refused, copied: Any) -> None:
    shutil.rmtree(copied.folder / "runs" / "latest", ignore_errors=True)
    facts = json.loads((copied.run.folder / "run.json").read_text())
    facts["feature_spec"]["pooling"] = "multilevel"
    edit_facts(copied, feature_spec=facts["feature_spec"])
    said = refused(copied)
    assert "recomputed with other settings" in said
    assert said.count("--allow-changed-cache") == 1


def test_with_allow_changed_cache_the_model_has_no_ood_score(xexport: Xexport, copied: Any, tmp_path: Path) -> None:
    facts = json.loads((copied.run.folder / "run.json").read_text())
    facts["cache"]["content_sha256"] = "0" * 64
    edit_facts(copied, cache=facts["cache"])
    done = xexport("onnx", copied.run.folder, "-o", tmp_path / "m.onnx", "--allow-changed-cache", "--json")
    assert done.exit_code == 0, done.output
    assert "the model has no out-of-distribution score" in done.stderr
    assert json.loads(done.stdout)["ood_threshold"] is None


def test_allow_changed_cache_has_no_effect_on_an_unchanged_cache(exported: Any) -> None:
    distance, threshold = ood_score_from_cache(exported.run, ExportSpec(allow_changed_cache=True))
    assert distance is not None
    assert threshold is not None


def test_the_ood_score_is_not_fitted_to_other_images_than_those_of_the_run(refused: Refused, copied: Any) -> None:
    next(copied.data.glob("train/disc/*.png")).unlink()
    done = invoke(
        featurize_main,
        *("featurize", copied.data, "-o", copied.folder / "features.h5", "--weights", copied.folder / "weights.pth"),
        *("--backbone", "efficientnet-lite0", "--size", copied.side, "--engine", "torch"),
    )
    assert done.exit_code == 0, done.output
    said = refused(copied)
    assert "recomputed since the run, from other images, labels or splits or by another engine" in said
    assert "xhead train" in said
    assert "--no-ood or --allow-changed-cache" in said
    assert ood_score_from_cache(copied.run, ExportSpec(ood=False)) == (None, None)


def test_a_missing_cache_is_named_with_a_fix(refused: Refused, xexport: Xexport, copied: Any, tmp_path: Path) -> None:
    """The suggested command computes the same cache again, although another class has been added."""
    shutil.copytree(copied.data / "train" / "disc", copied.data / "train" / "other")
    (copied.folder / "features.h5").unlink()
    said = refused(copied)
    assert "are missing" in said
    assert "--no-ood" in said
    [command] = re.findall(r"xfeat (featurize .*), or export", said)
    done = invoke(
        featurize_main, *shlex.split(command), "--weights", copied.folder / "weights.pth", "--engine", "torch"
    )
    assert done.exit_code == 0, done.output
    done = xexport("onnx", copied.run.folder, "-o", tmp_path / "m.onnx")
    assert done.exit_code == 0, done.output


def test_without_ood_score_a_run_is_exported_although_its_cache_is_missing(
    xexport: Xexport, copied: Any, tmp_path: Path
) -> None:
    (copied.folder / "features.h5").unlink()
    done = xexport("onnx", copied.run.folder, "-o", tmp_path / "m.onnx", "--no-ood", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["ood_threshold"] is None


def test_missing_images_are_an_error_that_names_data(refused: Refused, copied: Any) -> None:
    shutil.rmtree(copied.data)
    said = refused(copied)
    assert "the images of the run were not found" in said
    assert f"{copied.data}: nothing there" in said
    assert "--data DIR" in said


def test_moved_images_are_found_with_data(xexport: Xexport, copied: Any, tmp_path: Path) -> None:
    moved = shutil.move(copied.data, tmp_path / "elsewhere")
    done = xexport("onnx", copied.run.folder, "-o", tmp_path / "m.onnx", "--data", moved)
    assert done.exit_code == 0, done.output


def test_unusable_images_are_left_out_with_a_warning(xexport: Xexport, copied: Any, tmp_path: Path) -> None:
    """The certificate counts the images of each check, and lists them."""
    damaged, changed, *missing = sorted(copied.data.glob("test/disc/*.png"))
    damaged.write_bytes(b"no image")
    shutil.copy(copied.data / "test/bar/0.png", changed)
    for image in missing:
        image.unlink()
    done = xexport("onnx", copied.run.folder, "-o", tmp_path / "m.onnx", "--json")
    assert done.exit_code == 0, done.output
    for counts in ("5 of the run's 12 images are missing or unreadable", "1 of the run's 12 images have changed"):
        assert f"warning: {copied.data}: {counts}; the model is checked on the other 6\n" in done.stderr
    assert json.loads(done.stdout)["against_torch"]["CPUExecutionProvider"]["full"]["images"] == 6
    certificate = json.loads((tmp_path / "m.certificate.json").read_text())
    assert certificate["against_training"]["images"] == len(certificate["reference"]) == 6


def test_images_exchanged_since_the_training_are_detected(refused: Refused, copied: Any) -> None:
    for disc, bar in zip(copied.data.glob("test/disc/*"), copied.data.glob("test/bar/*"), strict=True):
        shutil.copy(disc, bar)
    (copied.folder / "features.h5").unlink()  # it has the digests of the images
    assert "if the images have changed since" in refused(copied, "--no-ood")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "damaged run.json"),
        (lambda text: text.replace('"schema_version": 1', '"schema_version": 9'), "another format or version"),
        (lambda text: text.replace('"dim"', '"dimension"'), "damaged run.json"),
    ],
)
def test_a_run_that_is_damaged_or_of_another_version_is_refused(
    xexport: Xexport, copied: Any, damage: Callable[[str], str], message: str
) -> None:
    file = copied.folder / "runs" / "first" / "run.json"
    file.write_text(damage(file.read_text()))
    before = snapshot(copied.folder)
    done = xexport("onnx", file.parent, "-o", copied.model)
    assert done.exit_code == 1
    assert message in done.stderr
    assert snapshot(copied.folder) == before


def test_a_missing_run_is_refused(xexport: Xexport, tmp_path: Path) -> None:
    done = xexport("onnx", tmp_path / "nowhere", "-o", tmp_path / "m.onnx")
    assert done.exit_code == 1
    assert "run not found" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_predictions_the_model_cannot_be_checked(refused: Refused, copied: Any) -> None:
    (copied.run.folder / "predictions.csv").unlink()
    assert "predictions are missing" in refused(copied)


def test_predictions_of_other_classes_are_refused(refused: Refused, copied: Any) -> None:
    file = copied.run.folder / "predictions.csv"
    file.write_text(file.read_text().replace("p_disc", "p_dot"))
    said = refused(copied)
    assert "predictions.csv: " in said
    assert "p_disc" in said


def test_an_output_below_a_file_is_refused(xexport: Xexport, copied: Any) -> None:
    (copied.folder / "file").write_text("in the way")
    before = snapshot(copied.folder)
    done = xexport("onnx", copied.run.folder, "-o", copied.folder / "file" / "m.onnx")
    assert done.exit_code == 1
    assert "cannot be written" in done.stderr
    assert snapshot(copied.folder) == before


def test_an_output_below_a_broken_symbolic_link_is_refused_before_any_work(
    xexport: Xexport, copied: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xfeat.export.export.ood_score_from_cache", None)
    (copied.folder / "link").symlink_to(copied.folder / "nowhere")
    before = snapshot(copied.folder)
    for place in ("m.onnx", "below/m.onnx"):
        done = xexport("onnx", copied.run.folder, "-o", copied.folder / "link" / place)
        assert done.exit_code == 1
        assert f"{copied.folder / 'link'}: output path is a broken symbolic link" in done.stderr
    assert snapshot(copied.folder) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(xexport: Xexport, copied: Any) -> None:
    closed = copied.folder / "closed"
    closed.mkdir()
    closed.chmod(0o500)
    done = xexport("onnx", copied.run.folder, "-o", closed / "m.onnx")
    assert done.exit_code == 1
    assert "no permission" in done.stderr


def test_ctrl_c_changes_no_file_and_says_how_to_continue(
    xexport: Xexport, copied: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("xfeat.export.export.trace", stop)
    before = snapshot(copied.folder)
    done = xexport("onnx", copied.run.folder, "-o", copied.model)
    assert done.exit_code == 130
    assert done.stdout == ""
    # a slow machine shows progress before
    assert done.stderr.splitlines()[-1] == "stopped; no incomplete file is left: run the same command again"
    assert snapshot(copied.folder) == before
    assert not list(copied.folder.glob(".model.onnx.*"))


def test_a_tolerance_is_refused_for_features_in_float32(xexport: Xexport, copied: Any) -> None:
    done = xexport("onnx", copied.run.folder, "-o", copied.model, "--tolerance", "0.1")
    assert done.exit_code == 2
    assert "--tolerance is for features that were not computed in float32" in done.stderr
    assert "fix:      leave out --tolerance" in done.stderr


def test_usage_errors_exit_with_2(xexport: Xexport) -> None:
    assert xexport("onnx", "--check-images", "0").exit_code == 2
    assert xexport("onnx", "--nonsense").exit_code == 2
