"""Tables as users bring them: what is read, and what is refused with its line. A row of a table here is a kind that
somebody met."""

from __future__ import annotations

import csv
import logging
import os
import re
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.inputs.data_sets import make
from xfeat.featurize.datasets.layouts import NO_LABEL, NO_SPLIT, SPLITS, Dataset, open_dataset
from xfeat.featurize.datasets.tables import read_table
from xfeat.featurize.errors import DataError

NAMES = ("images/cat_0.png", "images/cat_1.png", "images/dog_0.png", "images/dog_1.png")
LABELS = ("cat", "cat", "dog", "dog")
READ = [(name, label, "", "") for name, label in zip(NAMES, LABELS, strict=True)]


def put(root: Path, text: str | bytes, name: str = "list.csv") -> Path:
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return root / name


def taken(dataset: Dataset) -> list[tuple[str, str, str, str]]:
    """Return path, class, split and group of each image."""
    labels, splits = {NO_LABEL: "", **dict(enumerate(dataset.class_names))}, {NO_SPLIT: "", **dict(enumerate(SPLITS))}
    return [(entry.path, labels[entry.label], splits[entry.split], entry.group) for entry in dataset.entries]


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def listing(line: str, header: str = "path,label", end: str = "\n") -> str:
    """Return a table with a line for each image; ``{p}`` is its path, ``{n}`` its name, ``{s}`` that without suffix."""
    lines = [
        line.format(p=name, n=name.split("/")[1], s=name.split("/")[1][:-4], l=label, b=name.replace("/", "\\"))
        for name, label in zip(NAMES, LABELS, strict=True)
    ]
    return "".join(text + end for text in (header, *lines))


PLAIN = listing("{p},{l}")
FORMS: dict[str, str | bytes] = {
    "comma": PLAIN,
    "semicolon": listing("{p};{l}", "path;label"),
    "tab": listing("{p}\t{l}", "path\tlabel"),
    "vertical bar": listing("{p}|{l}", "path|label"),
    "sep line of Excel": "sep=;\r\n" + listing("{p};{l}", "path;label", "\r\n"),
    "sep line, tab": "SEP=\t\n" + listing("{p}\t{l}", "path\tlabel"),
    "semicolon with a comma in a header": listing("{p};{l};1,5", "path;label;height, m"),
    "comma with semicolons in a header": listing('{p},{l},"a;b;c"', "path,label,note; more; and more"),
    "a quoted header": listing('"{p}";"{l}"', '"path";"label"'),
    "byte order mark": "\ufeff" + listing("{p};{l}", "path;label", "\r\n"),
    "byte order mark and sep line": "\ufeffsep=,\n" + PLAIN,
    "UTF-16 with a mark": PLAIN.encode("utf-16"),
    "UTF-16 with a mark, big end first": b"\xfe\xff" + PLAIN.encode("utf-16-be"),
    "UTF-16 without a mark": PLAIN.encode("utf-16-le"),
    "UTF-16 without a mark, big end first": PLAIN.encode("utf-16-be"),
    "UTF-16 text of Excel": listing("{p}\t{l}", "path\tlabel", "\r\n").encode("utf-16"),
    "UTF-32": PLAIN.encode("utf-32"),
    "line ends of Windows": PLAIN.replace("\n", "\r\n"),
    "line ends of old Macs": PLAIN.replace("\n", "\r"),
    "no last line end": PLAIN[:-1],
    "blank lines": "\n\n" + PLAIN.replace("\n", "\n\n") + " \n,\n,,\n",
    "empty columns at the end": listing("{p},{l},,", "path,label,,"),
    "more empty values than columns": listing("{p},{l},,,"),
    "spaces": listing(" {p} , {l} ", " path , label "),
    "no-break spaces": listing("\u00a0{p}\u00a0,{l}\u00a0", "path,\u00a0label"),
    "quotes after spaces": listing('"{p}", "{l}"', '"path", "label"'),
    "line breaks in quotes": listing('"{p}","{l}","one\ntwo, ""x"""', "path,label,note"),
    "an index of pandas": listing("7,{p},{l}", ",path,label"),
    "another order": listing("{l},x,{p}", "label,age,path"),
    "capitals": listing("{p},{l}", "Path,LABEL"),
    "two columns of one unused name": listing("{p},1,2,{l}", "path,note,note,label"),
    "backslashes": listing("{b},{l}"),
    "a drive": listing("C:\\Users\\ann\\{b},{l}"),
    "a drive and slashes": listing("D:/set/{p},{l}"),
    "a server": listing("\\\\server\\share\\{b},{l}"),
    "absolute on another machine": listing("/nowhere/ann/{p},{l}"),
    "absolute below the folder": listing("PARENT/ROOT/{p},{l}"),
    "bare names": listing("{n},{l}"),
    "names without suffix": listing("{s},{l}"),
    "paths without suffix": listing("images/{s},{l}"),
    "dot": listing("./{p},{l}"),
    "dots": listing("images/../{p},{l}"),
    "dots that come back in": listing("..\\ROOT/{p},{l}"),
    "tables put together": listing("{p},{l}").replace("images/dog_0", "path,label\nimages/dog_0"),
    "the end of a file in DOS": PLAIN.replace("\n", "\r\n") + "\x1a",
    "signs of no width": listing("{p}\u200b,{l}\u200b"),
    "two slashes": listing("images//{n},{l}"),
    "the name of the folder around": listing("ROOT/{p},{l}"),
    "upper case": listing("{p},{l}").replace("images/", "Images/").replace(".png", ".PNG"),
    "an id beside the path": listing("17,{p},{l}", "id,path,label"),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_table_in_all_its_forms(tmp_path: Path, form: str) -> None:
    text = FORMS[form]
    data = make(tmp_path, *NAMES)
    content = text.encode() if isinstance(text, str) else text
    content = content.replace(b"PARENT", os.fsencode(tmp_path.parent)).replace(b"ROOT", os.fsencode(tmp_path.name))
    assert taken(open_dataset(put(data, content))) == READ


@pytest.mark.parametrize("suffix", [".csv", ".CSV", ".tsv", ".tab", ".txt"])
def test_tables_by_any_suffix(tmp_path: Path, suffix: str) -> None:
    make(tmp_path, *NAMES)
    assert taken(open_dataset(put(tmp_path, listing("{p}\t{l}", "path\tlabel"), f"list{suffix}"))) == READ


@pytest.mark.parametrize(
    ("use", "names"),
    {
        "path": "path Path PATH filename FileName file_name file image image_id imageId 'Image Index' img "
        "img_path name id X_ray_image_name image-path filenames",
        "label": "label Label class target finding 'Finding Labels' diagnosis category class_name dx labels Target",
        "split": "split set fold subset Dataset_type partition",
        "group": "group patient patient_id PatientID 'Patient ID' patientId subject subject_id",
    }.items(),
)
def test_the_names_of_columns(tmp_path: Path, use: str, names: str) -> None:
    make(tmp_path, "a.png", "b.png")
    values = {"path": "a.png", "label": "cat", "split": "train", "group": "p1"}
    for name in (quoted or plain for quoted, plain in re.findall(r"'([^']+)'|(\S+)", names)):
        header = [name if column == use else column for column in values]
        data = put(tmp_path, f"{','.join(header)}\n{','.join(values.values())}\n")
        assert taken(open_dataset(data)) == [("a.png", "cat", "train", "p1")], name
        table = read_table(data, ("path", "label"), ("split", "group"))
        assert table.columns == {column: (name if column == use else column) for column in values}


def test_what_was_read_is_said_with_the_names_of_the_columns(tmp_path: Path) -> None:
    make(tmp_path, *NAMES)
    dataset = open_dataset(put(tmp_path, listing("{s};{l};7", "image_id;finding;patient_id")))
    assert dataset.layout == "4 rows of list.csv (path: image_id, label: finding, group: patient_id), 2 classes"
    assert {entry.group for entry in dataset.entries} == {"7"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "found: *an empty file"),
        ("\n\n", "found: *an empty file"),
        ("path,label\n", "no images found(.|\n)*found: *no rows"),
        ("images/cat_0.png,cat\n", "column path is missing(.|\n)*found: *images/cat_0.png, cat"),
        ("path\nimages/cat_0.png\n", "column label is missing(.|\n)*class, target, finding"),
        ("path,cat,dog\nimages/cat_0.png,1,0\n", "column label is missing(.|\n)*found: *path, cat, dog"),
        ('"path;label"\n"images/cat_0.png;cat"\n', "column path is missing(.|\n)*found: *path;label"),
        ("path,filename,label\n", "2 columns could be the path: path, filename"),
        ("path,path,label\n", "2 columns could be the path: path, path"),
        ("path,label,Class\n", "2 columns could be the label: label, Class"),
        ("path,label,split,fold\n", "2 columns could be the split: split, fold"),
        ("path,label,patient,group\n", "2 columns could be the group: patient, group"),
        ("path,label\n,x\n", "line 2 has no path"),
        ("label,path\nx\n", "line 2 has no path"),
        ("\n\npath,label\n\n,x\n", "line 5 has no path"),
        ('path,label,n\nimages/cat_0.png,cat,"1\n2\n3"\n,cat,\n', "line 5 has no path"),
        ("sep=,\npath,label\n,x\n", "line 3 has no path"),
        ("path,label\r\r,x\r", "line 3 has no path"),
        ("path,label\nimages/cat, 0.png,cat\n", "line 2 has 3 values for 2 columns(.|\n)*separated by comma"),
        ('"path" "label"\n1 images/cat_0.png cat\n', "wrong quotation marks|column path is missing"),
        ('path,label\nimages/cat_0.png,"cat\nimages/cat_1.png,cat\n', "line 2: wrong quotation marks"),
        ('path,label\nimages/cat_0.png,"cat\nimages/cat_1.png,"cat\n', "line 2: wrong quotation marks"),
        ('path,label\nimages/cat_0.png,"cat\nimages/cat_1.png,cat"\n', "line 2: the label goes over several lines"),
        (f"path,label,n\nimages/cat_0.png,cat,{'x' * (1 << 18)}\n", "line 2: a value is longer than 128 KiB"),
        ("path,label\nimages/cat_0.png,c\0at\n", "line 2 contains NUL"),
        ("path,label\nimages/cat_0.png,cat\n\0\0\0\0", "line 3 contains NUL"),
        (b"PK\x03\x04 and more", "not a CSV file(.|\n)*Excel"),
        (b"\xff\xfep\0a\0t\0h", "damaged or cut short"),
        ("path,label\nä.png,cat\n".encode() + b"\xe4.png,dog\n", "line 3 is not UTF-8, but other letters are"),
        ("path,label,split\nimages/cat_0.png,cat,fold3\n", "line 2 has an unknown split"),
        ("path,label,fold\nimages/cat_0.png,cat,3\nimages/cat_1.png,cat,test\n", "line 2 has an unknown split"),
        ("path,label\nimages/cat_0.png,cat|dog\n", "line 2 has several labels in one cell"),
        ('path,label\ncat_0,cat\ndog_0,dog\ncat_1,"cat, dog"\n', "line 4 has several labels in one cell"),
        ("path,label\ncat_0,['cat']\ndog_0,['dog']\ncat_1,\"['cat', 'dog']\"\n", "line 4 has several labels"),
        ("path,label\nhttps://example.org/a.png,cat\n", "line 2 has an address in place of a file"),
        ("path,label\ns3://bucket/a.png,cat\n", "line 2 has an address in place of a file"),
        ("path,label\n/,cat\n", "line 2 has an absolute path outside"),
        ("path,label\nimages/gone.png,cat\n", "none of its images is there(.|\n)*line 2: images/gone.png"),
        ("path,label\nimages,cat\n", "line 2 names a folder"),
        ("path,label\nimages\\,cat\n", "line 2 names a folder"),
        ("path,label\nimages/cat_0.png,cat\n.,cat\n", "line 3 names a folder"),
        ("path,label\nC:\\,cat\nC:,cat\n\\,cat\n", "none of its images is there|line 4 names a folder"),
        ("path,label\nother/cat_0.png,cat\n", "none of its images is there"),
        ("path,label\ntwice.png,cat\n", r"line 2: twice.png can mean 2 files(.|\n)*a/twice.png, b/twice.png"),
        ("path,label\ntwice,cat\n", "line 2: twice can mean 2 files"),
        ("path,label\nkinds,cat\n", "line 2: kinds can mean 2 files"),
        (
            "path,label\nimages/cat_0.png,cat\n./images\\cat_0.png,dog\n",
            "lines 2 and 3 give images/cat_0.png two labels",
        ),
        ("path,label\ncat_0,cat\n../ROOT/images/cat_0.png,dog\n", "lines 2 and 3 give images/cat_0.png two labels"),
        ("path,label\nimages/cat_0.png,cat\n\ncat_0,dog\n", "lines 2 and 4 give images/cat_0.png two labels"),
        ("path,label,set\ncat_0,cat,train\ncat_0,cat,test\n", "lines 2 and 3 give images/cat_0.png two splits"),
        ("path,label,patient\ncat_0,cat,p1\ncat_0,cat,p2\n", "lines 2 and 3 give images/cat_0.png two groups"),
    ],
)
def test_what_is_refused_names_the_table_its_line_and_a_way_out(tmp_path: Path, text: str | bytes, said: str) -> None:
    content = (text.encode() if isinstance(text, str) else text).replace(b"ROOT", tmp_path.name.encode())
    data = put(make(tmp_path, *NAMES, "a/twice.png", "b/twice.png", "kinds.png", "kinds.jpg"), content)
    with pytest.raises(DataError, match=said) as caught:
        open_dataset(data)
    assert str(caught.value).startswith(f"{data}: ")
    assert caught.value.fix
    assert len(str(caught.value)) < 1200


@pytest.mark.parametrize("suffix", [".xls", ".ods"])
def test_a_workbook_of_another_kind_is_refused_as_one(tmp_path: Path, suffix: str) -> None:
    with zipfile.ZipFile(tmp_path / f"list{suffix}", "w") as archive:
        archive.writestr("content.xml", "<office/>")
    with pytest.raises(DataError, match=r"not a CSV file(.|\n)*workbook(.|\n)*save it as CSV"):
        open_dataset(tmp_path / f"list{suffix}")


def test_latin_1_is_read_where_utf_8_fails_and_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, *NAMES)
    dataset = open_dataset(put(tmp_path, listing("{p},Kät{l} €").encode("cp1252")))
    assert dataset.class_names == ("Kätcat €", "Kätdog €")
    assert (
        "list.csv is not UTF-8 and is read as Latin-1; line 2: Kätcat € (if that is wrong, save it as UTF-8)"
        in caplog.text
    )
    caplog.clear()
    assert open_dataset(put(tmp_path, listing("{p},Kät{l}"))).class_names == ("Kätcat", "Kätdog")
    assert not warnings_in(caplog)


@pytest.mark.parametrize("empty", ["", "  ", "NaN", "nan", "NULL", "n/a", "<NA>"])
def test_rows_without_a_label_are_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, empty: str
) -> None:
    make(tmp_path, *NAMES)
    dataset = open_dataset(put(tmp_path, PLAIN.replace("images/cat_1.png,cat", f"images/cat_1.png,{empty}")))
    assert taken(dataset) == [row for row in READ if row[0] != "images/cat_1.png"]
    assert "list.csv: no label in 1 of 4 rows: line 3: images/cat_1.png" in caplog.text
    assert dataset.left_out["no label in the table"]["files"] == 1


def test_a_table_without_any_label_is_features_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = open_dataset(put(make(tmp_path, *NAMES), listing("{p},")))
    assert [label for _, label, *_ in taken(dataset)] == [""] * 4
    assert "no label in 4 of 4 rows" in caplog.text
    assert dataset.layout == "4 rows of list.csv, no classes"


def test_a_missing_value_is_no_patient_and_no_split(tmp_path: Path) -> None:
    data = put(make(tmp_path, *NAMES), listing("{p},{l},nan,NaN", "path,label,patient,split"))
    assert taken(open_dataset(data)) == READ


def test_a_comma_alone_does_not_make_several_labels(tmp_path: Path) -> None:
    data = put(make(tmp_path, *NAMES), 'path,label\ncat_0,"cat, tabby"\ndog_0,dog\n')
    assert open_dataset(data).class_names == ("cat, tabby", "dog")


def test_the_class_none_is_a_class(tmp_path: Path) -> None:
    assert open_dataset(put(make(tmp_path, *NAMES), listing("{p},None"))).class_names == ("None",)


def test_a_repeated_row_counts_once_and_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = open_dataset(put(make(tmp_path, *NAMES), PLAIN + "images/cat_0.png,cat\ncat_0,cat\n"))
    assert taken(dataset) == READ
    assert "list.csv: repeated images count once, rows: 2: line 6: images/cat_0.png, line 7: cat_0" in caplog.text


def test_a_column_of_folds_is_no_column_of_splits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = open_dataset(put(make(tmp_path, *NAMES), listing("{p},{l},3", "path,label,fold")))
    assert taken(dataset) == READ
    assert dataset.layout == "4 rows of list.csv, 2 classes"
    assert "list.csv: column fold names no splits and is not used" in caplog.text


def test_labels_that_differ_only_in_case_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, *NAMES)
    text = "path,label\ncat_0,Cat\ncat_1,cat\n"
    assert open_dataset(put(tmp_path, text)).class_names == ("Cat", "cat")
    assert "Cat, cat differ only in upper and lower case: they are classes of their own" in caplog.text
    split = "path,label,split\ncat_0,Cat,train\ncat_1,cat,test\n"
    assert open_dataset(put(tmp_path, split)).class_names == ("Cat",)


def test_only_what_is_missing_is_searched_for_so_that_a_locked_folder_does_not_matter(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> object:
        raise PermissionError(13, "Permission denied", path)

    make(tmp_path, *NAMES)
    monkeypatch.setattr(os, "scandir", refuse)
    assert taken(open_dataset(put(tmp_path, PLAIN))) == READ
    assert len(open_dataset(put(tmp_path, PLAIN + "gone.png,cat\n")).entries) == 5
    assert "cannot be listed: Permission denied; files are not searched below" in caplog.text


# Any table


@settings(deadline=None, max_examples=150)
@given(
    rows=st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_characters="\0\r\u200b\ufeff"), min_size=1).filter(str.strip),
            st.sampled_from(["a", "b;c", 'd"e', "f,g", "h i"]),
            st.text(st.characters(codec="utf-8", exclude_characters="\0\r\u200b\ufeff"), max_size=20),
        ),
        min_size=1,
        max_size=8,
    ),
    separator=st.sampled_from(",;\t|"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_what_python_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str, str]],
    separator: str,
    encoding: str,
    end: str,
) -> None:
    """The reference is Python's writer, and the number of line ends in what it wrote."""
    path = tmp_path_factory.mktemp("table") / "t.csv"
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, delimiter=separator, lineterminator=end)
        writer.writerow(("path", "label", "note"))
        writer.writerows(rows)
    table = read_table(path, ("path", "label"))
    read = [(row.path, row.label) for row in table.rows]
    assert read == [(path.strip(" \t\xa0"), label) for path, label, _ in rows]
    lines, line = [], 2
    for row in rows:
        lines.append(line)
        line += 1 + sum(value.count("\n") for value in row)
    assert [row.line for row in table.rows] == lines


def test_the_log_says_nothing_where_there_is_nothing_to_say(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_dataset(put(make(tmp_path, *NAMES), PLAIN))
    assert not warnings_in(caplog)
