"""Folders as users bring them: what is taken, what is left out and why, and what is refused because it can be read in
two ways. A row of a table is a kind that somebody met."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.caches import write_made_up
from tests.inputs.data_sets import make, pack
from xfeat.featurize.audit.class_names import name_findings
from xfeat.featurize.datasets.layouts import NO_LABEL, NO_SPLIT, SPLITS, Dataset, open_dataset
from xfeat.featurize.datasets.structure import split_of
from xfeat.featurize.datasets.unlabelled import list_images
from xfeat.featurize.errors import DataError, SpecError
from xfeat.head.reports.run_report import file_cautions

CLASSES = ("covid", "normal")


def images_in(*folders: str) -> list[str]:
    return [f"{folder}/{number}.png" for folder in folders for number in range(2)]


def taken(dataset: Dataset) -> dict[str, set[str]]:
    """Return the classes of each split."""
    found: dict[str, set[str]] = {}
    for entry in dataset.entries:
        split = "" if entry.split == NO_SPLIT else SPLITS[entry.split]
        found.setdefault(split, set()).add("" if entry.label == NO_LABEL else dataset.class_names[entry.label])
    return found


@pytest.mark.parametrize(
    ("split", "names"),
    {
        "train": "train Train TRAIN training train_set trainset train-data x_train seg_train train2017 TrainSet "
        "TRAINset trainingset xtrain 01_train",
        "valid": "val valid validation Validation dev val_images VAL dev_set validationset",
        "test": "test Test testing Testing test_set testset testdata holdout seg_test eval",
        "": "trainer covid contest normal train_test attest device latest protest",
    }.items(),
)
def test_the_names_of_splits_in_their_forms(split: str, names: str) -> None:
    assert {name: split_of(name) for name in names.split()} == dict.fromkeys(names.split(), split)


FOLDERS = {
    "usual names": [f"{split}/{name}" for split in ("train", "val", "test") for name in CLASSES],
    "other forms": [f"{split}/{name}" for split in ("Training", "dev", "Testing") for name in CLASSES],
    "one folder around": [f"chest/{split}/{name}" for split in ("train", "val", "test") for name in CLASSES],
    "two folders around": [f"archive/chest/{split}/{name}" for split in ("train", "val", "test") for name in CLASSES],
    "a split repeated": [f"seg_{s}/seg_{s}/{name}" for s in ("train", "val", "test") for name in CLASSES],
    "images inside splits": [f"{split}/images/{name}" for split in ("train", "val", "test") for name in CLASSES],
    "splits inside classes": [f"{name}/{split}" for split in ("train", "val", "test") for name in CLASSES],
}


@pytest.mark.parametrize("kind", FOLDERS)
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_splits_and_classes_are_found(tmp_path: Path, kind: str, packed: bool) -> None:
    names = images_in(*FOLDERS[kind])
    dataset = open_dataset(pack(tmp_path / "data.zip", *names) if packed else make(tmp_path, *names))
    assert taken(dataset) == {split: set(CLASSES) for split in SPLITS}
    assert dataset.layout.startswith("3 splits × 2 classes")
    assert not dataset.left_out


@pytest.mark.parametrize(
    ("names", "layout", "classes"),
    [
        (images_in("a/covid", "a/normal"), "2 classes, in a/", {"": {"covid", "normal"}}),
        (images_in("a/b/c/covid", "a/b/c/normal"), "2 classes, in a/b/c/", {"": {"covid", "normal"}}),
        (images_in("covid/p1", "normal/p1"), "2 classes", {"": {"covid", "normal"}}),
        (images_in("covid/p1", "covid/p2"), "1 class", {"": {"covid"}}),
        (images_in("with_mask", "without_mask"), "2 classes", {"": {"with_mask", "without_mask"}}),
        (images_in("a", "A"), "2 classes", {"": {"a", "A"}}),
        (["a.png", "b.png"], "no classes", {"": {""}}),
        (images_in("train", "test"), "2 splits × no classes", {"train": {""}, "test": {""}}),
    ],
)
def test_what_is_taken_is_said(tmp_path: Path, names: list[str], layout: str, classes: dict[str, set[str]]) -> None:
    dataset = open_dataset(make(tmp_path, *names))
    assert (dataset.layout, taken(dataset)) == (layout, classes)


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (("train", "car", "bus"), "as splits: train, without the 4 images in bus, car"),
        (("train/covid", "test/covid", "more/covid"), "as splits: test, train, without the 2 images in more"),
        (("Entrenar/covid", "Entrenar/normal", "Prueba/covid", "Prueba/normal"), "Entrenar, Prueba, each with"),
        (("clinic a/covid", "clinic a/normal", "clinic b/covid", "clinic b/normal"), "splits or sources"),
        (("nih/covid", "nih/normal", "rsna/covid", "rsna/normal", "rsna/tb"), "nih, rsna, each with"),
        (("amazon/images/bag", "amazon/images/mug", "dslr/images/bag", "dslr/images/mug"), "amazon, dslr, each with"),
        (("a/train/covid", "a/train/normal", "b/test/covid", "b/test/normal"), "a, b, each with the folders covid"),
        (("covid/train", "covid/test", "covid/extra", "normal/train"), "covid/test, covid/train: either as splits, or"),
        (("covid/p1/train", "covid/p2/test", "normal/p3"), "covid/p1/train, covid/p2/test: either"),
        (("train_covid", "train_normal", "test_covid"), "test_covid, train_covid: either"),
        (("train.v1/covid", "test.v1/covid"), "test.v1/covid, train.v1/covid: either"),
    ],
)
def test_two_readings_are_refused_and_can_be_chosen(tmp_path: Path, folders: tuple[str, ...], said: str) -> None:
    make(tmp_path, *images_in(*folders))
    with pytest.raises(DataError, match="in two ways") as caught:
        open_dataset(tmp_path)
    assert said in str(caught.value)
    assert "--layout classes" in str(caught.value)
    tops = {folder.partition("/")[0] for folder in folders}
    assert set(open_dataset(tmp_path, layout="classes").class_names) == tops
    assert open_dataset(tmp_path, layout="flat").class_names == ()
    if said.startswith("as splits"):
        assert set(taken(open_dataset(tmp_path, layout="splits"))) == tops & {"train", "test"}


def test_a_chosen_layout_without_splits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder is called like a split"):
        open_dataset(make(tmp_path, *images_in("covid")), layout="splits")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("covid/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg", "in a folder of the system"),
        ("__MACOSX/covid/._0.png", "in a folder of the system"),
        ("covid/._0.png", "hidden"),
        ("covid/Thumbs.db", "not a known kind of image"),
        ("covid/IMG_1.CR2", "not a known kind of image"),
        ("covid/0_mask.png", "a mask"),
        ("covid/masks/0.png", "a mask"),
        ("masks/covid/0.png", "a mask"),
        ("covid/0_mask_1.png", "a mask"),
        ("LungMask/covid/0.png", "a mask"),
        ("#snapshot/daily/covid/0.png", "in a folder of the system"),
        ("covid/groups.csv", "not a known kind of image"),
        ("preview.png", "in no class folder"),
    ],
)
def test_what_is_left_out_is_counted_by_reason(tmp_path: Path, name: str, reason: str) -> None:
    dataset = open_dataset(make(tmp_path, *images_in("covid", "normal"), name))
    assert taken(dataset) == {"": {"covid", "normal"}}
    assert len(dataset.entries) == 4
    suffix = Path(name).suffix.lower()
    assert dataset.left_out[reason] == {"files": 1, "suffixes": {suffix: 1}, "example": name}


@pytest.mark.parametrize(
    ("folders", "reason"),
    [(("covid", "normal"), "in no class folder"), (("train/covid", "test/covid"), "not in a split")],
)
def test_an_image_beside_a_folder_that_is_looked_through_is_in_none(
    tmp_path: Path, folders: tuple[str, ...], reason: str
) -> None:
    names = images_in(*(f"archive/chest/{folder}" for folder in folders))
    dataset = open_dataset(make(tmp_path, *names, "archive/preview.png"))
    assert dataset.layout.endswith("in archive/chest/")
    assert len(dataset.entries) == len(names)
    assert dataset.left_out[reason]["example"] == "archive/preview.png"


def test_a_layout_of_folders_is_refused_for_a_table(tmp_path: Path) -> None:
    (make(tmp_path, "a.png") / "list.csv").write_text("path,label\na.png,covid\n")
    with pytest.raises(SpecError, match="--layout splits is for folders"):
        open_dataset(tmp_path / "list.csv", layout="splits")


def test_masks_in_a_folder_beside_the_images_of_a_class(tmp_path: Path) -> None:
    folders = [f"{name}/{kind}" for name in CLASSES for kind in ("images", "masks")]
    dataset = open_dataset(make(tmp_path, *images_in(*folders)))
    assert len(dataset.entries) == 4
    assert dataset.left_out["a mask"]["files"] == 4


def test_images_in_no_class_of_a_split_and_unlabelled_folders_are_left_out(tmp_path: Path) -> None:
    names = images_in("train/covid", "train/normal", "test/covid", "seg_pred")
    dataset = open_dataset(make(tmp_path, *names, "test/1.png"))
    assert {reason: entry["files"] for reason, entry in dataset.left_out.items()} == {
        "in no class folder": 1,
        "not in a split": 2,
    }


def test_a_copy_of_the_whole_folder_inside_it_is_left_out(tmp_path: Path) -> None:
    inner = images_in("train/covid", "train/normal", "test/covid")
    dataset = open_dataset(make(tmp_path, *inner, *(f"chest/{name}" for name in inner)))
    assert len(dataset.entries) == len(inner)


def test_composed_and_decomposed_letters_are_one_class(tmp_path: Path) -> None:
    folders = [f"train/{unicodedata.normalize('NFC', 'Käse')}", f"test/{unicodedata.normalize('NFD', 'Käse')}"]
    assert open_dataset(make(tmp_path, *images_in(*folders))).class_names == (unicodedata.normalize("NFC", "Käse"),)


def test_upper_and_lower_case_in_two_splits_are_one_class_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path, *images_in("train/COVID", "train/normal", "test/Covid", "test/normal"))
    assert open_dataset(tmp_path).class_names == ("COVID", "normal")
    assert "COVID, Covid differ only in upper and lower case: they are one class, COVID" in caplog.text


ARCHIVES = {
    "dot": "./train/covid/0.png",
    "backslashes": "train\\covid\\0.png",
    "absolute": "/train/covid/0.png",
    "drive": "C:\\train\\covid\\0.png",
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_names_in_archives_of_other_programs(tmp_path: Path, kind: str) -> None:
    data = pack(tmp_path / "data.zip", ARCHIVES[kind], ARCHIVES[kind].replace("0", "1"))
    assert taken(open_dataset(data)) == {"train": {"covid"}}


def test_names_that_an_archive_has_twice_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ("covid\\", "covid/0.png", "covid\\0.png", "normal/0.png")
    dataset = open_dataset(pack(tmp_path / "data.zip", *names))
    assert [entry.path for entry in dataset.entries] == ["covid/0.png", "normal/0.png"]
    assert "names that the archive has more than once, of which the last file is read: 1" in caplog.text
    assert not dataset.left_out


@pytest.mark.parametrize(
    ("encoding", "classes"),
    [
        ("gbk", ("狗", "猫")),
        ("gbk", ("陰性", "陽性")),  # not in GB 2312
        ("utf-8", ("狗", "猫")),
        ("utf-8", ("Brot", "Käse")),
        ("cp437", ("Käse", "niño")),
    ],
)
def test_names_without_the_flag_for_utf_8(tmp_path: Path, encoding: str, classes: tuple[str, str]) -> None:
    assert open_dataset(unmarked(tmp_path, encoding, classes)).class_names == classes


def test_names_in_an_archive_that_are_in_doubt_are_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_dataset(unmarked(tmp_path, "gbk", ("猫", "狗")))
    assert "encoded" not in caplog.text
    open_dataset(unmarked(tmp_path, "gbk", ("陰性", "陽性")))
    assert "does not say how its names are encoded; they are read as GBK, such as 陰性/1.png" in caplog.text
    open_dataset(unmarked(tmp_path, "cp866", ("кот", "пёс")))
    assert "they are read as CP437" in caplog.text


def unmarked(tmp_path: Path, encoding: str, classes: tuple[str, str]) -> Path:
    """Write an archive whose names are in an encoding that it does not state."""
    data = tmp_path / "data.zip"
    contents = [f"{name}/1.png".encode(encoding) for name in classes]
    places = [letter * len(content) for letter, content in zip("xy", contents, strict=True)]
    written = pack(data, *places).read_bytes()
    for place, content in zip(places, contents, strict=True):
        written = written.replace(place.encode(), content)
    data.write_bytes(written)
    return data


def test_the_audit_asks_about_classes_called_like_splits_and_the_report_says_what_was_left_out(tmp_path: Path) -> None:
    columns = {"label": [0, 1], "split": [0, 0], "path": ["a", "b"]}
    cache = write_made_up(tmp_path / "a.h5", np.zeros((2, 3), np.float32), columns, ["Testing", "covid"])
    (odd,) = name_findings(cache)
    assert odd.kind == "classes.odd-names"
    assert odd.title == "Classes called Testing"
    left_out = {"a mask": {"files": 3, "suffixes": {".png": 3}, "example": "masks/P1.png"}}
    assert file_cautions(replace(cache, left_out=left_out)) == ["Left out, a mask: 3 .png, such as masks/P1.png."]


@pytest.mark.parametrize(
    ("paths", "asked"),
    [
        (["hospital_a/1", "hospital_b/1"], ["hospital_a: hospital_a", "hospital_b: hospital_b"]),
        (["NIH/1", "MIMIC-CXR/1"], ["MIMIC-CXR: MIMIC-CXR", "NIH: NIH"]),
        (["train/CheXpert/1", "test/kaggle/1"], ["CheXpert: CheXpert", "kaggle: kaggle"]),
        (["covid_github/1", "normal/1"], ["covid_github: covid_github"]),
        (["siteA/1", "siteB/1"], ["siteA: siteA", "siteB: siteB"]),
        (["covid/cohen/1", "covid/cohen/2", "normal/nih/1"], ["covid: cohen", "normal: nih"]),
        (["covid/p1/cohen/1", "covid/p2/cohen/1", "normal/nih/1"], ["covid: cohen", "normal: nih"]),
        (["covid/nih/1", "normal/nih/1"], []),
        (["covid/nih/1", "covid/rsna/1", "normal/rsna/1", "normal/nih/1"], []),
        (["covid/nih/1", "covid/2", "normal/1"], []),
        (["covid/1", "normal/1"], []),
        (["center1/1", "center_2/1"], ["center1: center1", "center_2: center_2"]),
        (["center/1", "left/1", "pleural collection/1"], []),
        (["opposite/1", "centered/1", "parasite/1", "composite/1"], []),
    ],
)
def test_the_audit_asks_whether_each_class_comes_from_one_source(
    tmp_path: Path, paths: list[str], asked: list[str]
) -> None:
    names = [next(part for part in path.split("/") if not split_of(part)) for path in paths]
    classes = sorted(set(names))
    columns = {"label": [classes.index(name) for name in names], "split": [NO_SPLIT] * len(paths), "path": paths}
    cache = write_made_up(tmp_path / "a.h5", np.zeros((len(paths), 3), np.float32), columns, classes)
    findings = list(name_findings(cache))
    assert [line for finding in findings for line in finding.lines] == asked
    assert [finding.kind for finding in findings] == ["classes.sources"] * bool(asked)


def test_masks_are_left_out_of_data_sets_and_not_of_folders_to_predict(tmp_path: Path) -> None:
    make(tmp_path, "covid/1.png", "covid/1_mask.png")
    assert [entry.path for entry in open_dataset(tmp_path).entries] == ["covid/1.png"]
    for given in ([tmp_path], tmp_path, str(tmp_path)):
        assert list_images(given) == [tmp_path / "covid/1.png", tmp_path / "covid/1_mask.png"]
