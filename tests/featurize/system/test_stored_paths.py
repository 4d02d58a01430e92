"""How a path is written into a file, and what it names when it is read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from xfeat.featurize.system.stored_paths import StoredPath, absolute_form, find_stored, stored_form


@pytest.mark.parametrize(
    ("folder", "target", "text"),
    [
        ("/p/runs/a", "/p/features.h5", "../../features.h5"),
        ("/p", "/p/data", "data"),
        ("/p", "/p", "."),
        ("/p/a b", "/p/ü/%41/x.zip", "../ü/%41/x.zip"),
        ("/p", "/p/caf\udce9", "caf\udce9"),
        ("/home/me/p", "/home/me/sets/xray", "../sets/xray"),
        ("/p", "/mnt/data", "/mnt/data"),
        ("/runs/a", "/features.h5", "/features.h5"),
        ("/", "/data", "data"),
        ("/p", "", ""),
    ],
)
def test_paths_with_a_folder_in_common_are_relative(folder: str, target: str, text: str) -> None:
    assert stored_form(target, Path(folder)) == text
    assert absolute_form(text, Path(folder)) == target


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("project/data", "data"),
        ("alias/data", "data"),
        ("project/linked", "linked"),
        ("project/linked/../far", "{}/disk/far"),
        ("disk/far", "../disk/far"),
    ],
)
@pytest.mark.parametrize("folder", ["project", "alias"])
def test_links_keep_their_names_and_lead_to_the_target(tmp_path: Path, folder: str, target: str, text: str) -> None:
    for made in ("project/data", "disk/xray", "disk/far"):
        (tmp_path / made).mkdir(parents=True)
    (tmp_path / "project" / "linked").symlink_to(tmp_path / "disk" / "xray")
    (tmp_path / "alias").symlink_to(tmp_path / "project")
    found = stored_form(tmp_path / target, tmp_path / folder)
    assert Path(absolute_form(found, tmp_path / folder)).samefile(tmp_path / target)
    if "{}" not in text:
        assert found == text


def test_where_a_folder_is_a_link_parents_are_not_mixed_up(tmp_path: Path) -> None:
    """``runs/..`` is the project by name, and the other disk in the file system."""
    for made in ("disk/runs/a", "project"):
        (tmp_path / made).mkdir(parents=True)
    (tmp_path / "project" / "runs").symlink_to(tmp_path / "disk" / "runs")
    (tmp_path / "project" / "features.h5").touch()
    (tmp_path / "disk" / "features.h5").touch()
    folder = tmp_path / "project" / "runs" / "a"
    text = stored_form(tmp_path / "project" / "features.h5", folder)
    for read_from in (folder, folder.resolve()):
        assert Path(absolute_form(text, read_from)).samefile(tmp_path / "project" / "features.h5")


@pytest.mark.parametrize(
    ("text", "written_in", "original"),
    [
        (r"C:\study\features.h5", "", r"C:\study\features.h5"),
        ("C:/study/features.h5", "", "C:/study/features.h5"),
        (r"\\server\share\features.h5", "", r"\\server\share\features.h5"),
        ("../../features.h5", r"D:\study\runs\a", r"D:\study\features.h5"),
        (r"..\..\features.h5", r"D:\study\runs\a", r"D:\study\features.h5"),
        ("../../features.h5", "/old/study/runs/a", "/old/study/features.h5"),
        ("/old/features.h5", "", "/old/features.h5"),
    ],
)
def test_paths_of_every_system_are_found_by_name(tmp_path: Path, text: str, written_in: str, original: str) -> None:
    folder, file = tmp_path / "project" / "runs" / "a", tmp_path / "project" / "features.h5"
    folder.mkdir(parents=True)
    file.touch()
    stored = StoredPath(now=absolute_form(text, folder), folder=folder, written_in=written_in)
    assert stored.original == original
    assert find_stored([stored], lambda path: "", similar=None if written_in else Path.is_file).path == file


def test_the_nearest_of_equal_names_is_taken_and_others_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    for place in (tmp_path, tmp_path / "a"):
        (place / "data").mkdir()
    stored = StoredPath(now="/nowhere/data", folder=folder)
    assert find_stored([stored], lambda path: "", similar=Path.is_dir).path == tmp_path / "a" / "data"
    search = find_stored([stored], lambda path: "other" * (path.parent == tmp_path / "a"), similar=Path.is_dir)
    assert search.path == tmp_path / "data"
    search = find_stored([stored], lambda path: "another content", similar=Path.is_dir)
    assert (search.path, search.refused) == (None, None)
    assert search.report.splitlines()[:3] == [
        "/nowhere/data: nothing there",
        f"{tmp_path / 'a' / 'data'}: another content",
        f"{tmp_path / 'data'}: another content",
    ]


def test_a_file_named_like_a_windows_path_is_not_looked_for_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / r"C:\data").touch()
    stored = StoredPath(now=r"C:\data", folder=tmp_path / "runs")
    assert list(stored.named()) == []
    assert os.path.lexists(r"C:\data")
