"""Which files and groups the rows of a table mean."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from tests.inputs.data_sets import make
from tests.inputs.test_tables import NAMES, PLAIN, put, taken
from xfeat.featurize.datasets.layouts import open_dataset
from xfeat.featurize.errors import DataError


def test_a_name_that_is_latin_1_on_the_disk_too(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"K\xe4se.png")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (entry,) = open_dataset(put(tmp_path, "path,label\nKäse.png,cat\n".encode("latin-1"))).entries
    assert entry.path == os.fsdecode(b"K\xe4se.png")


def test_names_that_differ_in_how_letters_are_composed(tmp_path: Path) -> None:
    make(tmp_path, "images/Ka\u0308se.png")
    data = put(tmp_path, "path,label\nimages/K\u00e4se.png,Brie\u0301\nimages/Käse.png,Bri\u00e9\n")
    assert taken(open_dataset(data)) == [("images/Ka\u0308se.png", "Bri\u00e9", "", "")]


def test_a_backslash_in_the_name_of_a_file(tmp_path: Path) -> None:
    if os.name == "nt":
        pytest.skip("a separator there")
    make(tmp_path, "a\\b.png", "a/b.png")
    assert [path for path, *_ in taken(open_dataset(put(tmp_path, "path,label\na\\b.png,cat\n")))] == ["a\\b.png"]


def test_a_file_in_another_folder_is_not_taken_for_the_one_that_is_named(tmp_path: Path) -> None:
    make(tmp_path, "normal/1.png", "covid/2.png", "normal/2.png")
    for prefix in ("", "C:\\set\\", "/nowhere/set/"):
        lines = [f"{prefix}{name}" for name in ("covid/1.png", "covid/2.png", "normal/2.png")]
        data = put(tmp_path, "path,label\n" + "".join(f"{line},x\n" for line in lines))
        assert {"covid/2.png", "normal/2.png"} < {path for path, *_ in taken(open_dataset(data))}
        assert "normal/1.png" not in {path for path, *_ in taken(open_dataset(data))}


def test_more_folders_tell_which_of_two_files_is_meant(tmp_path: Path) -> None:
    make(tmp_path, "one/images/1.png", "two/images/1.png", "one/masks/1.png")
    data = put(tmp_path, "path,label\none\\images\\1.png,x\nD:\\set\\two\\images\\1.png,y\n")
    assert taken(open_dataset(data)) == [("one/images/1.png", "x", "", ""), ("two/images/1.png", "y", "", "")]


def test_a_mask_beside_the_image_is_not_what_a_bare_name_means(tmp_path: Path) -> None:
    make(tmp_path, "images/1.png", "masks/1.png", "@eaDir/1.png")
    assert taken(open_dataset(put(tmp_path, "path,label\n1,cat\n"))) == [("images/1.png", "cat", "", "")]


def test_an_absolute_path_of_this_machine_is_not_replaced(tmp_path: Path) -> None:
    make(tmp_path, "elsewhere/1.png", "data/1.png")
    data = put(tmp_path / "data", f"path,label\n{tmp_path}/elsewhere/1.png,cat\n")
    with pytest.raises(DataError, match=r"line 2 has an absolute path outside"):
        open_dataset(data)


def test_paths_that_lead_out_of_the_folder_and_back_in_are_files_like_others(tmp_path: Path) -> None:
    make(tmp_path, "images/1.png", "tables/x")
    assert [
        path for path, *_ in taken(open_dataset(put(tmp_path, "path,label\n..\\images\\1.png,x\n", "tables/t.csv")))
    ]


def test_missing_files_are_named_with_their_lines_and_their_number(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gone = "".join(f"gone/{number}.png,cat\n" for number in range(7))
    dataset = open_dataset(put(make(tmp_path, *NAMES), PLAIN + gone))
    assert len(dataset.entries) == 11  # reading skips them with the reason, or stops with --on-error fail
    assert "list.csv: missing: 7 of 11 images: line 6: gone/0.png, line 7: gone/1.png" in caplog.text
    assert "and 2 more" in caplog.text


# Groups


GROUPS = {
    "plain": "path,group\n{0},p1\n{1},p2\n",
    "semicolons and other names": "image_id;patient_id\n{0};p1\n{1};p2\n",
    "backslashes": "path,group\n.\\a\\1.png,p1\nC:\\set\\a\\2.png,p2\n",
    "bare names without suffix": "Image,Patient ID\n1,p1\n2,p2\n",
    "labels beside them": "path,label,class,group\n{0},x,y,p1\n{1},x,y,p2\n",
    "a repeated row": "path,group\n{0},p1\n{0},p1\n{1},p2\n",
}


@pytest.mark.parametrize("form", GROUPS)
@pytest.mark.parametrize("place", ["option", "folder", "zip"])
def test_groups_are_read_by_the_same_reader(tmp_path: Path, form: str, place: str) -> None:
    names, text = ("a/1.png", "a/2.png"), GROUPS[form].format("a/1.png", "a/2.png")
    if place == "zip":
        data = tmp_path / "data.zip"
        with zipfile.ZipFile(data, "w") as archive:
            for name, content in {**dict.fromkeys(names, ""), "groups.csv": text}.items():
                archive.writestr(f"set/{name}", content)
    else:
        data = make(tmp_path / "data", *names)
        put(data if place == "folder" else tmp_path, text, "groups.csv")
    dataset = open_dataset(data, groups=str(tmp_path / "groups.csv") if place == "option" else None)
    assert [entry.group for entry in dataset.entries] == ["p1", "p2"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,group\na/1.png,p1\na/1.png,p2\n", "lines 2 and 3 give a/1.png two groups"),
        ("path,group\na/1.png,p1\n./a\\1.png,\n", "lines 2 and 3 give a/1.png two groups"),
        ("path,group\n3.png,p1\n", "line 2: 3.png can mean 2 files"),
        ("path,subject,patient\n", "2 columns could be the group: subject, patient"),
        ("path,label\n", "column group is missing(.|\n)*patient, patient_id"),
    ],
)
def test_groups_that_contradict_themselves_are_refused(tmp_path: Path, text: str, said: str) -> None:
    data = make(tmp_path / "data", "a/1.png", "a/3.png", "b/3.png")
    with pytest.raises(DataError, match=said) as caught:
        open_dataset(data, groups=str(put(tmp_path, text, "groups.csv")))
    assert str(caught.value).startswith(f"{tmp_path / 'groups.csv'}: ")


def test_rows_of_groups_without_an_image_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = make(tmp_path / "data", "a/1.png", "b/1.png")
    open_dataset(data, groups=str(put(tmp_path, "path,group\na/1.png,p1\nb/2.png,p2\n", "g.csv")))
    assert "g.csv: no image of the data set in 1 of 2 rows: line 3: b/2.png" in caplog.text
    assert "1 of 2 images have no group" in caplog.text
