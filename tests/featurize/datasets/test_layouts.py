"""Layouts of the input: which images there are, with which label, split and group."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.inputs.data_sets import make, pack
from xfeat.featurize.datasets.layouts import NO_SPLIT, Dataset, open_dataset
from xfeat.featurize.errors import DataError, SpecError


def rows(dataset: Dataset) -> list[tuple[str, str, int]]:
    """Return (path, class name, split) of each image."""
    names = (*dataset.class_names, "-")
    return [(entry.path, names[entry.label], entry.split) for entry in dataset.entries]


def test_a_name_that_is_not_utf8_is_kept(tmp_path: Path) -> None:
    make(tmp_path, "covid/a.png")
    try:
        (tmp_path / "covid" / b"\xff.png".decode("utf-8", "surrogateescape")).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert [entry.path for entry in open_dataset(tmp_path).entries] == ["covid/a.png", "covid/\udcff.png"]


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    make(tmp_path, "covid/a.png", "locked/b.png")
    scandir = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DataError, match="locked: cannot be listed: Permission denied"):
        open_dataset(tmp_path)


# Nothing to read


def test_a_missing_folder_says_which_layouts_there_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"folder or file not found(.|\n)*train\|valid\|test"):
        open_dataset(tmp_path / "nowhere")


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images found"):
        open_dataset(make(tmp_path, "covid/readme.txt"))


def test_an_image_as_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected: *a folder, an archive"):
        open_dataset(make(tmp_path, "a.png") / "a.png")


# Classes and groups


def test_classes_can_be_chosen_and_labels_follow(tmp_path: Path) -> None:
    make(tmp_path, "covid/a.png", "normal/b.png", "pneumonia/c.png")
    dataset = open_dataset(tmp_path, classes=["pneumonia", "covid"])
    assert rows(dataset) == [("covid/a.png", "covid", NO_SPLIT), ("pneumonia/c.png", "pneumonia", NO_SPLIT)]
    assert dataset.left_out["of no class in --classes"] == {
        "files": 1,
        "suffixes": {".png": 1},
        "example": "normal/b.png",
    }


@pytest.mark.parametrize(("classes", "said"), [(["flu", "covid"], "no class called flu"), ([], "no classes are given")])
def test_an_unknown_class_is_reported(tmp_path: Path, classes: list[str], said: str) -> None:
    make(tmp_path, "covid/a.png", "normal/b.png")
    with pytest.raises(DataError, match=said):
        open_dataset(tmp_path, classes=classes)


def groups_of(dataset: Dataset) -> list[str]:
    return [entry.group for entry in dataset.entries]


@pytest.mark.parametrize(("expression", "expected"), [(r"p\d+", ["p1", "p1", "p2"]), (r"(\d+)-", ["1", "1", "2"])])
def test_groups_come_from_an_expression(tmp_path: Path, expression: str, expected: list[str]) -> None:
    make(tmp_path, "covid/p1-1.png", "covid/p1-2.png", "covid/p2-1.png")
    assert groups_of(open_dataset(tmp_path, groups=expression)) == expected


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ("absent.csv", "file not found"),
        ("absent.TSV", "file not found"),
        ("x" * 5000, "matches none of the images"),
        ("(", "neither a file nor a regular expression"),
        ("nothing-like-it", "matches none of the images"),
    ],
)
def test_invalid_groups_are_reported(tmp_path: Path, groups: str, said: str) -> None:
    with pytest.raises((DataError, SpecError), match=said):
        open_dataset(make(tmp_path, "covid/a.png"), groups=groups)


@pytest.mark.parametrize(("long", "other"), [(5000 * "p", "q"), (2500 * "é", 3000 * "q")], ids=["letters", "bytes"])
def test_a_group_that_is_too_long_for_a_cache_is_refused_before_work(tmp_path: Path, long: str, other: str) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    table = tmp_path / "table.csv"
    table.write_text(f"path,label,group\na.png,x,{long}\nb.png,x,{other}\n")
    with pytest.raises(DataError) as problem:
        open_dataset(table)
    assert (problem.value.file, problem.value.expected) == (table, "at most 4,096 bytes")


def test_an_unknown_class_of_a_manifest_names_the_manifest(tmp_path: Path) -> None:
    make(tmp_path, "a.png")
    (tmp_path / "m.csv").write_text("path,label\na.png,covid\n")
    with pytest.raises(DataError, match=r"m\.csv: no class called flu"):
        open_dataset(tmp_path / "m.csv", classes=["flu"])


# Archives


def test_a_broken_archive_is_an_error(tmp_path: Path) -> None:
    whole = pack(tmp_path / "data.zip", "covid/a.png").read_bytes()
    (tmp_path / "data.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="not a zip archive"):
        open_dataset(tmp_path / "data.zip")
