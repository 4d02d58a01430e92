"""Further columns of the images, from a manifest or from --metadata: what joins, what is said, what is refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from tests.inputs.data_sets import make, pack
from xfeat.featurize.datasets.column_choice import ColumnChoice
from xfeat.featurize.datasets.layouts import Dataset, open_dataset
from xfeat.featurize.errors import DataError, SpecError

NAMES = ("covid/1.png", "covid/2.png", "normal/1.png", "normal/3.png")
GROUPS = "path,group\ncovid/1.png,007\ncovid/2.png,007\nnormal/1.png,12\nnormal/3.png,13\n"


def columns_of(dataset: Dataset) -> dict[str, list[str]]:
    """Return the texts of each column, in the order of the paths."""
    return {column.name: [e.further[at] for e in dataset.entries] for at, column in enumerate(dataset.columns)}


def opened(folder: Path, table: str | bytes, *, groups: str = "", columns: str = "", **options: Any) -> Dataset:
    data = make(folder / "data", *options.pop("names", NAMES))
    if groups:
        (data / "groups.csv").write_text(groups)
    file = folder / "patients.csv"
    file.write_bytes(table if isinstance(table, bytes) else table.encode())
    return open_dataset(data, metadata=file, columns=ColumnChoice.parse(columns), **options)


def warned(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)


AGES = ["1", "2", "3", "4"]
BY_PATH = "path,age\ncovid/1.png,1\ncovid/2.png,2\nnormal/1.png,3\nnormal/3.png,4\n"
# Table, groups.csv, --columns, expected ages, and what is said.
JOINED: dict[str, tuple[str | bytes, str, str, list[str], str]] = {
    "paths": (BY_PATH, "", "", AGES, ""),
    "semicolon": (BY_PATH.replace(",", ";"), "", "", AGES, ""),
    "tab": (BY_PATH.replace(",", "\t"), "", "", AGES, ""),
    "byte order mark": ("\ufeff" + BY_PATH, "", "", AGES, ""),
    "UTF-16": (BY_PATH.encode("utf-16"), "", "", AGES, ""),
    "any name": (BY_PATH.replace("path", "Bilddatei"), "", "path=Bilddatei", AGES, ""),
    "any name with semicolons": (BY_PATH.replace("path", "Bild").replace(",", ";"), "", "path=Bild", AGES, ""),
    "other capitals": (BY_PATH.replace("path", "Bilddatei"), "", "path=BILDDATEI", AGES, ""),
    "a name with a comma": (BY_PATH.replace("path", '"a, b"'), "", '"path=a, b"', AGES, ""),
    "base names": ("file,age\n2.png,2\n3.png,4\n", "", "", ["", "2", "", "4"], "images without a row: 2 of 4"),
    "no suffix": (
        "image_id,age\n2,2\n3,4\n",
        "",
        "",
        ["", "2", "", "4"],
        "images without a row: 2 of 4 (covid/1.png, normal/1.png)",
    ),
    "backslashes": (BY_PATH.replace("/", "\\"), "", "", AGES, ""),
    "trailing spaces": (BY_PATH.replace(",", " , "), "", "", AGES, ""),
    "ambiguous base names": (
        "file,age\n1.png,1\n2.png,2\n3.png,4\n",
        "",
        "",
        ["", "2", "", "4"],
        "left out, because several images fit: line 2: 1.png",
    ),
    "strangers": (BY_PATH + "covid/9.png,9\n", "", "", AGES, "rows without an image: 1 of 5 (line 6: covid/9.png)"),
    "a second row that adds": (BY_PATH.replace("1.png,1\n", "1.png,NA\n") + "covid/1.png,1\n", "", "", AGES, ""),
    "groups": ("patient,age\n007,1\n12,3\n13,4\n", GROUPS, "", ["1", "1", "3", "4"], ""),
    "groups of a spreadsheet": (
        "patient,age\n7,1\n12.0,3\n13,4\n",
        GROUPS,
        "",
        ["1", "1", "3", "4"],
        "with or without leading zeros: 7 as 007, 12.0 as 12",
    ),
    "an unknown group": (
        "patient,age\n007,1\n99,3\n",
        GROUPS,
        "",
        ["1", "1", "", ""],
        "rows without an image: 1 of 2 (line 3: 99)",
    ),
    "names of patients": ("patient,name,age\n007,Ann,1\n12,Bo,3\n13,Cy,4\n", GROUPS, "", ["1", "1", "3", "4"], ""),
}


@pytest.mark.parametrize("case", JOINED)
def test_a_table_joins_by_path_or_group(case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table, groups, columns, ages, said = JOINED[case]
    dataset = opened(tmp_path, table, groups=groups, columns=columns)
    assert columns_of(dataset)["age"] == ages
    assert said in warned(caplog)
    assert bool(said) == bool(warned(caplog))
    assert dataset.class_names == ("covid", "normal")


# Tables that are read twice, once for paths and once for groups: their remarks.
SAID_ONCE = {
    "renamed": (b"patient,size\n12,3\n", "", "(size) is called table_size here"),
    "renamed, beside a name": (b"patient,name,size\n12,Ann,3\n", "", "(size) is called table_size here"),
    "renamed, with the group named": (b"Pat,name,size\n12,Ann,3\n", "group=Pat", "(size) is called table_size here"),
    "Latin-1": (b"patient,name,Gr\xf6\xdfe\n12,Ann,3\n", "", "is read as Latin-1"),
}


@pytest.mark.parametrize("case", SAID_ONCE)
def test_a_remark_on_a_table_is_given_once(case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table, columns, said = SAID_ONCE[case]
    opened(tmp_path, table, groups=GROUPS, columns=columns)
    assert warned(caplog).count(said) == 1


# The header of a table, --columns, and the names and kinds of the columns that come of it.
NAMED = {
    "as they are": ("path,Alter in Jahren,Größe", "", {"Alter in Jahren": "", "Größe": ""}, ""),
    "renamed": ("path,Alter,Ort", "age=Alter,Ort:category", {"age": "", "Ort": "category"}, ""),
    "renamed, with a kind": ("path,Alter", "age=Alter,age:number", {"age": "number"}, ""),
    "renamed and kind at once": ("path,Alter", "age=Alter:number", {"age": "number"}, ""),
    "duplicates": ("path,age,age", "", {"age": "", "age_2": ""}, "column 3 (age) is called age_2 here"),
    "duplicates by case": ("path,age,Age", "", {"age": "", "Age_2": ""}, "column 3 (Age) is called Age_2 here"),
    "our own": ("path,size,sha256", "", {"table_size": "", "table_sha256": ""}, "(size) is called table_size here"),
    "our own by case": ("path,Features,x", "", {"table_Features": "", "x": ""}, "is called table_Features here"),
    "a slash": ("path,mg/dl,..", "", {"mg/dl": "", "..": ""}, ""),
    "a line break": ('path,"a\nb"', "", {"a b": ""}, r"is called a b here"),
    "an index": (",path,age", "", {"age": ""}, ""),
    "no name": ("path,,age", "", {"column 2": "", "age": ""}, ""),
    "long": ("path," + "x" * 200, "", {"x" * 100: ""}, "is called"),
    "findings": ("path,finding,class", "", {"finding": "", "class": ""}, ""),
    "the label by another name": ("path,label", "truth=label", {"truth": ""}, ""),
}


@pytest.mark.parametrize("case", NAMED)
def test_columns_get_their_names_and_kinds(case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    header, columns, names, said = NAMED[case]
    values = ",".join("xyz"[: header.count(",")])
    row = f"covid/2.png,{values}" if header.startswith("path") else "0,covid/2.png,x"
    dataset = opened(tmp_path, f"{header}\n{row}\n", columns=columns)
    assert {column.name: dataset.column_kinds.get(column.name, "") for column in dataset.columns} == names
    assert all(column.source == "patients.csv" for column in dataset.columns)
    assert said in warned(caplog)


REFUSED = {
    "nothing joins": ("path,age\nx.png,1\n", "", "none of its rows belongs to an image"),
    "no group joins": ("patient,age\nx,1\n", "", "none of its rows belongs to an image"),
    "no key": ("Bild,age\ncovid/1.png,1\n", "", "no column names images or groups(.|\n)*--columns path=NAME"),
    "two keys": ("file,image,age\nx,y,1\n", "", "2 columns could be the path: file, image(.|\n)*--columns path=NAME"),
    "no such column": (BY_PATH, "site:category", "no column called site(.|\n)*path, age"),
    "no such name": (BY_PATH, "path=datei", "no column called datei"),
    "two values": (BY_PATH + "covid/1.png,9\n", "", "lines 2 and 6 give covid/1.png two values of age"),
    "another label": ("path,label\ncovid/1.png,normal\n", "", "column label contradicts the label of 1 of 4 images"),
    "another code": (
        "path,label\ncovid/1.png,1\n",
        "",
        r"covid/1.png: covid, in the table 1(.|\n)*--columns finding=label",
    ),
    "another split": (
        "path,split\ncovid/1.png,fold 3\n",
        "",
        r"line 2 has an unknown split(.|\n)*--columns finding=split",
    ),
    "NUL bytes": (BY_PATH.replace("3.png", "3\0png"), "", "line 5 contains NUL bytes"),
    "empty": ("", "", "no column names images or groups"),
    "values without a name": (BY_PATH + "covid/1.png,1,2,3\n", "", "line 6 has 4 values for 2 columns"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_joined_is_refused(case: str, tmp_path: Path) -> None:
    table, columns, said = REFUSED[case]
    with pytest.raises((DataError, SpecError), match=said):
        opened(tmp_path, table, groups=GROUPS, columns=columns)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("age", "says nothing"),
        ("age:years", "says nothing"),
        ("=age", "says nothing"),
        ("age=", "says nothing"),
        ("path:number", "says nothing"),
        ("a=b,a=c", "a stands there twice"),
        ("a:number,a:text", "a stands there twice"),
    ],
)
def test_an_option_that_says_nothing_is_refused(text: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        ColumnChoice.parse(text)


def test_two_rows_of_a_group_must_agree(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lines 2 and 3 give 007 two values of age"):
        opened(tmp_path, "patient,age\n007,1\n007,2\n", groups=GROUPS)


def test_a_label_that_agrees_with_the_folders_is_no_column(tmp_path: Path) -> None:
    dataset = opened(tmp_path, "path,label,age\ncovid/1.png,COVID,1\nnormal/1.png,,3\n")
    assert set(columns_of(dataset)) == {"age"}
    assert dataset.class_names == ("covid", "normal")


def test_images_without_classes_get_them_and_their_splits_from_the_table(tmp_path: Path) -> None:
    table = "path,finding,split,age\n1.png,covid,Training,1\n2.png,normal,test,2\n"
    dataset = opened(tmp_path, table, names=("1.png", "2.png", "3.png"), columns="label=finding")
    assert dataset.class_names == ("covid", "normal")
    assert [(entry.label, entry.split) for entry in dataset.entries] == [(0, 0), (1, 2), (-1, 255)]
    assert columns_of(dataset) == {"age": ["1", "2", ""]}


def test_groups_of_the_table_fill_in_and_do_not_replace(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    groups = "path,group\ncovid/1.png,p1\n"
    table = "path,patient\ncovid/1.png,p9\ncovid/2.png,p2\n"
    dataset = opened(tmp_path, table, groups=groups)
    assert [entry.group for entry in dataset.entries] == ["p1", "p2", "", ""]
    assert "column patient: images with another group, which stays: 1 (covid/1.png)" in warned(caplog)


def test_a_group_may_be_in_two_hospitals(tmp_path: Path) -> None:
    table = "path,hospital\ncovid/1.png,A\ncovid/2.png,B\nnormal/1.png,A\nnormal/3.png,A\n"
    assert columns_of(opened(tmp_path, table, groups=GROUPS)) == {"hospital": ["A", "B", "A", "A"]}


MANIFEST = "filename,finding,patient,age,label\ncovid/1.png,a,p1,1,x\nnormal/3.png,b,p2,,y\n"


def manifest(folder: Path, metadata: str | None = None, columns: str = "label=finding") -> Dataset:
    (make(folder, *NAMES) / "list.csv").write_text(MANIFEST)
    if metadata is not None:
        (folder / "more.csv").write_text(metadata)
    more = {"metadata": folder / "more.csv"} if metadata is not None else {}
    return open_dataset(folder / "list.csv", columns=ColumnChoice.parse(columns), **more)


def test_a_manifest_keeps_its_other_columns(tmp_path: Path) -> None:
    dataset = manifest(tmp_path)
    assert dataset.class_names == ("a", "b")
    assert columns_of(dataset) == {"age": ["1", ""], "table_label": ["x", "y"]}


def test_columns_of_both_tables_are_one_if_they_agree(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = manifest(tmp_path, "path,Age,sex\ncovid/1.png,1,F\nnormal/3.png,3,M\n")
    assert columns_of(dataset) == {"age": ["1", "3"], "table_label": ["x", "y"], "sex": ["F", "M"]}
    assert "differs" not in warned(caplog)


def test_columns_of_both_tables_are_two_if_they_differ(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = manifest(tmp_path, "path,age\ncovid/1.png,2\nnormal/3.png,3\n")
    assert columns_of(dataset) == {"age": ["1", ""], "table_label": ["x", "y"], "age_2": ["2", "3"]}
    assert "column age differs from that of list.csv in 1 images, and is called age_2 here" in warned(caplog)


def test_rows_of_one_image_must_agree_in_every_column(tmp_path: Path) -> None:
    make(tmp_path, *NAMES)
    (tmp_path / "list.csv").write_text("path,label,age\ncovid/1.png,a,1\ncovid/1.png,a,2\n")
    with pytest.raises(DataError, match=r"lines 2 and 3 give covid/1.png two values of age"):
        open_dataset(tmp_path / "list.csv")


def test_an_archive_takes_a_table_too(tmp_path: Path) -> None:
    (tmp_path / "patients.csv").write_text(BY_PATH)
    dataset = open_dataset(pack(tmp_path / "data.zip", *NAMES), metadata=tmp_path / "patients.csv")
    assert columns_of(dataset) == {"age": AGES}


def test_columns_follow_their_rows_when_classes_are_chosen(tmp_path: Path) -> None:
    assert columns_of(opened(tmp_path, BY_PATH, classes=["normal"])) == {"age": ["3", "4"]}


def test_two_hundred_columns_are_read(tmp_path: Path) -> None:
    header = ",".join(f"c{number}" for number in range(200))
    rows = [f"{name}," + ",".join(str(number) for number in range(200)) for name in NAMES]
    dataset = opened(tmp_path, "\n".join([f"path,{header}", *rows]) + "\n")
    assert len(dataset.columns) == 200
    assert dataset.entries[3].further[199] == "199"


def test_many_columns_of_one_name_are_told_apart(tmp_path: Path) -> None:
    dataset = opened(tmp_path, f"path{',x' * 2000}\ncovid/2.png{',1' * 2000}\n")
    assert [column.name for column in dataset.columns[-2:]] == ["x_1999", "x_2000"]


def test_a_table_of_groups_keeps_no_columns_and_says_nothing_of_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = opened(tmp_path, BY_PATH, groups=GROUPS.replace("group\n", "group,label\n").replace("7\n", "7,x\n"))
    assert columns_of(dataset) == {"age": AGES}
    assert warned(caplog) == ""


def test_of_several_keys_the_plain_name_is_taken(tmp_path: Path) -> None:
    dataset = opened(tmp_path, "image_id,path,age\n7,covid/2.png,2\n")
    assert columns_of(dataset) == {"image_id": ["", "7", "", ""], "age": ["", "2", "", ""]}
