"""Publishing the three files: paths checked before the work, the certificate last, no unfinished files left."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from xfeat.export.publish import output_paths, publish
from xfeat.featurize.errors import OutputError

NAMES = ("model.onnx", "model.core.onnx", "model.certificate.json")


def write(folder: Path, text: str) -> None:
    for name in NAMES:
        (folder / name).write_text(text)


def targets(folder: Path) -> list[Path]:
    return [folder / name for name in NAMES]


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() if path.is_file() else "a folder" for path in folder.iterdir()}


def test_a_model_has_its_core_form_and_certificate_beside_it(tmp_path: Path) -> None:
    models, certificate = output_paths(tmp_path / "model.onnx")
    assert [*models.values(), certificate] == targets(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_an_output_path_that_is_a_folder_is_refused_before_the_work(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(OutputError) as problem:
        output_paths(tmp_path / "model.onnx")
    assert problem.value.file == tmp_path / name


@pytest.mark.parametrize("place", ["file/model.onnx", "file/below/model.onnx"])
def test_an_output_path_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written") as problem:
        output_paths(tmp_path / place)
    assert problem.value.file == tmp_path / place
    assert contents(tmp_path) == {"file": "in the way"}


def test_checking_the_output_path_creates_no_folder(tmp_path: Path) -> None:
    output_paths(tmp_path / "deep" / "er" / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_all_files_are_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    write(tmp_path, "old")
    with publish(targets(tmp_path)) as folder:
        write(folder, "new")
        assert contents(tmp_path)["model.onnx"] == "old"
    assert contents(tmp_path) == dict.fromkeys(NAMES, "new")


@pytest.mark.parametrize("problem", [OSError("full"), KeyboardInterrupt()])
def test_a_failure_keeps_the_older_files(tmp_path: Path, problem: BaseException) -> None:
    def fail() -> None:
        with publish(targets(tmp_path)) as folder:
            write(folder, "new")
            raise problem

    write(tmp_path, "old")
    with pytest.raises((OutputError, KeyboardInterrupt)):
        fail()
    assert contents(tmp_path) == dict.fromkeys(NAMES, "old")


def test_everything_is_on_disk_before_the_first_is_replaced_and_the_certificate_goes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    replace = os.replace

    def recorded(source: Path, target: Path) -> None:
        steps.append(f"replace {target.name}")
        replace(source, target)

    monkeypatch.setattr("xfeat.export.publish.flush", lambda path: steps.append(f"flush {path.name}"))
    monkeypatch.setattr(os, "replace", recorded)
    with publish(targets(tmp_path)) as folder:
        write(folder, "new")
    assert steps == [*(f"flush {n}" for n in NAMES), *(f"replace {n}" for n in NAMES), f"flush {tmp_path.name}"]


def test_the_folder_of_a_killed_export_is_removed_after_a_day_and_no_other_folder_is(tmp_path: Path) -> None:
    two_days_ago = time.time() - 2 * 24 * 60 * 60
    kept = [".model.onnx.running.unfinished", ".model.onnx.mine", ".other.onnx.a.unfinished"]
    for name in (".model.onnx.killed.unfinished", *kept):
        (tmp_path / name).mkdir()
        write(tmp_path / name, "half")
        if "running" not in name:
            os.utime(tmp_path / name, (two_days_ago, two_days_ago))
    with publish(targets(tmp_path)) as folder:
        write(folder, "new")
    assert set(contents(tmp_path)) == {*NAMES, *kept}


def test_a_name_that_the_file_system_refuses_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        output_paths(tmp_path / f"{'x' * 300}.onnx")
    assert not list(tmp_path.iterdir())


def test_the_name_of_a_core_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="reserved for the core model") as problem:
        output_paths(tmp_path / "model.core.onnx")
    assert problem.value.fix == "-o model.onnx"
