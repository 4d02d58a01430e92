"""xfeat split: what goes where, and that groups and copies stay together."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from xfeat.featurize.cli import main
from xfeat.featurize.datasets.groups import joined_groups
from xfeat.featurize.datasets.layouts import open_dataset
from xfeat.featurize.datasets.split import SplitSpec, assign_splits, split_dataset
from xfeat.featurize.errors import DataError, Interrupted, OutputError, SpecError


def make_folders(root: Path, *, patients: int = 12, classes: tuple[str, ...] = ("covid", "normal")) -> Path:
    """Write two files a patient; split reads bytes, so they need not be images."""
    for label in classes:
        for patient in range(patients):
            for number in range(2):
                path = root / label / f"{label}{patient:02d}-{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(f"{label} {patient} {number}".encode())
    return root


def files_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.png")}


@st.composite
def grouped_labels(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Labels and groups with at least three groups a class; some groups have several classes."""
    classes = draw(st.integers(1, 4))
    rows = []
    for group in range(draw(st.integers(3 * classes, 60))):
        own = group % classes
        mixed = draw(st.sampled_from([own, own, own, draw(st.integers(0, classes - 1))]))
        rows += [(own, group)] + [(mixed, group)] * draw(st.integers(0, 4))
    labels, groups = np.array(rows).T
    return labels.astype(np.int32), groups.astype(np.int64)


@settings(deadline=None, max_examples=60)
@given(data=grouped_labels(), seed=st.integers(0, 5))
def test_no_group_is_in_two_splits_and_every_split_has_every_class(
    data: tuple[np.ndarray, np.ndarray], seed: int
) -> None:
    labels, groups = data
    splits = assign_splits(labels, groups, SplitSpec(seed=seed))
    for group in np.unique(groups):
        assert len(set(splits[groups == group])) == 1
    for label in np.unique(labels):
        assert set(splits[labels == label]) == {0, 1, 2}
    assert np.array_equal(splits, assign_splits(labels, groups, SplitSpec(seed=seed)))


def test_another_seed_gives_another_split() -> None:
    labels, groups = np.repeat(np.arange(2, dtype=np.int32), 50), np.arange(100)
    first, second = (assign_splits(labels, groups, SplitSpec(seed=seed)) for seed in (0, 1))
    assert not np.array_equal(first, second)


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=60, max_size=120),
    ratios=st.sampled_from([(60, 20, 20), (80, 10, 10), (70, 0, 30), (0.5, 0.25, 0.25), (34, 33, 33)]),
    seed=st.integers(0, 3),
)
def test_shares_of_each_class_are_within_one_large_group_of_the_ratios(
    sizes: list[int], ratios: tuple[float, float, float], seed: int
) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    labels = (groups % 2).astype(np.int32)
    splits = assign_splits(labels, groups, SplitSpec(ratios=ratios, seed=seed))
    for label in (0, 1):
        total = (labels == label).sum()
        for part, ratio in enumerate(ratios):
            wanted = total * ratio / sum(ratios)
            assert abs((splits[labels == label] == part).sum() - wanted) <= max(sizes)


def test_single_images_follow_the_ratios_exactly() -> None:
    labels = np.repeat(np.arange(2, dtype=np.int32), [50, 20])
    splits = assign_splits(labels, np.arange(70), SplitSpec())
    assert [np.bincount(splits[labels == label]).tolist() for label in (0, 1)] == [[30, 10, 10], [12, 4, 4]]


def test_a_shared_name_or_a_shared_content_joins_groups_through_others() -> None:
    names = ["a", "", "b", "b", "", "c"]
    hashes = ["1", "1", "1", "2", "3", "4"]
    assert joined_groups(names, hashes).tolist() == [0, 0, 0, 0, 4, 5]


def test_all_images_arrive_unchanged_under_their_class(tmp_path: Path) -> None:
    source = make_folders(tmp_path / "in")
    (tmp_path / "out").mkdir()  # an empty folder is filled
    result = split_dataset(open_dataset(source), tmp_path / "out", SplitSpec())
    assert not result.named_groups
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["test", "train", "valid"]
    before, after = files_of(source), files_of(tmp_path / "out")
    assert sorted(before.values()) == sorted(after.values())
    for image in result.images:
        assert after[image.path] == before[image.entry.path]
        assert image.path.split("/")[1] == image.entry.path.split("/")[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_groups_stay_together_and_are_written_where_featurize_finds_them(tmp_path: Path) -> None:
    source = make_folders(tmp_path / "in")
    dataset = open_dataset(source, groups=r"/([a-z]+\d+)-")
    split_dataset(dataset, tmp_path / "out", SplitSpec())
    again = open_dataset(tmp_path / "out")
    splits = defaultdict(set)
    for entry in again.entries:
        assert entry.group
        splits[entry.group].add(entry.split)
    assert len(splits) == 24
    assert all(len(parts) == 1 for parts in splits.values())


def test_exact_copies_stay_together_even_across_groups(tmp_path: Path) -> None:
    source = make_folders(tmp_path / "in", patients=20)
    for number in range(6):
        (source / "covid" / f"copy{number}.png").write_bytes((source / "covid" / "covid03-0.png").read_bytes())
    dataset = open_dataset(source, groups=r"/([a-z]+\d+)")
    result = split_dataset(dataset, tmp_path / "out", SplitSpec(seed=3))
    together = [image for image in result.images if "copy" in image.path or "covid03" in image.path]
    assert len({image.split for image in together}) == 1
    assert len({image.group for image in together}) == 1
    with (tmp_path / "out" / "groups.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(result.images)


def test_files_of_the_same_name_in_nested_folders_all_arrive(tmp_path: Path) -> None:
    for label in ("covid", "normal"):
        for patient in range(9):
            folder = tmp_path / "in" / label / f"p{patient}" / "x"
            folder.mkdir(parents=True)
            for name in ("1.png", "1.PNG"):
                (folder / name).write_bytes(f"{label}{patient}{name}".encode())
    result = split_dataset(open_dataset(tmp_path / "in"), tmp_path / "out", SplitSpec())
    assert len({image.path.casefold() for image in result.images}) == 36
    for image in result.images:
        assert (tmp_path / "out" / image.path).read_bytes() == (tmp_path / "in" / image.entry.path).read_bytes()


def test_a_manifest_with_paths_from_elsewhere_is_divided(tmp_path: Path) -> None:
    make_folders(tmp_path / "in")
    rows = [("path", "label"), *((f"../in/{name}", name.split("/")[0]) for name in files_of(tmp_path / "in"))]
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "all.csv").write_text("\n".join(map(",".join, rows)) + "\n")
    result = split_dataset(open_dataset(tmp_path / "list" / "all.csv"), tmp_path / "out", SplitSpec())
    assert sorted(files_of(tmp_path / "out").values()) == sorted(files_of(tmp_path / "in").values())
    assert all(image.path.count("/") == 2 for image in result.images)


def test_an_archive_is_divided_without_unpacking_it_first(tmp_path: Path) -> None:
    source = make_folders(tmp_path / "in")
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", source)
    result = split_dataset(open_dataset(archive), tmp_path / "out", SplitSpec(link=True))
    assert sorted(files_of(source).values()) == sorted(files_of(tmp_path / "out").values())
    assert result.linked == 0


def test_link_makes_hard_links(tmp_path: Path) -> None:
    source = make_folders(tmp_path / "in")
    result = split_dataset(open_dataset(source), tmp_path / "out", SplitSpec(link=True))
    assert result.linked == len(result.images)
    for image in result.images:
        assert os.path.samefile(tmp_path / "out" / image.path, source / image.entry.path)


def test_link_falls_back_to_copies_with_a_notice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    source = make_folders(tmp_path / "in")
    result = split_dataset(open_dataset(source), tmp_path / "out", SplitSpec(link=True))
    assert result.linked == 0
    assert "cannot link to files" in caplog.text
    assert sorted(files_of(source).values()) == sorted(files_of(tmp_path / "out").values())


def test_a_target_with_something_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    source = make_folders(tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(OutputError, match="not empty"):
        split_dataset(open_dataset(source), tmp_path / "out", SplitSpec())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_target_inside_the_source_is_refused(tmp_path: Path) -> None:
    source = make_folders(tmp_path / "in")
    with pytest.raises(OutputError, match="inside the data"):
        split_dataset(open_dataset(source), source / "out", SplitSpec())


@pytest.mark.parametrize(
    ("problem", "error", "said"),
    [
        (OSError(28, "No space left on device"), OutputError, "disk is full"),
        (KeyboardInterrupt(), Interrupted, "run the same command again"),
    ],
)
def test_a_failure_half_way_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: BaseException, error: type[Exception], said: str
) -> None:
    source = make_folders(tmp_path / "in")
    real, calls = shutil.copyfile, []

    def full(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) > 5:
            raise problem
        real(source, target)

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(error, match=said):
        split_dataset(open_dataset(source), tmp_path / "out", SplitSpec())
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_too_few_groups_of_a_class_is_one_message_with_counts(tmp_path: Path) -> None:
    source = make_folders(tmp_path / "in")
    for name in ("a", "b"):
        (source / "rare").mkdir(exist_ok=True)
        (source / "rare" / f"{name}.png").write_text(name)
    with pytest.raises(DataError, match=r"(?s)at least 3 groups.*rare 2.*--classes"):
        split_dataset(open_dataset(source), tmp_path / "out", SplitSpec())
    assert not (tmp_path / "out").exists()


def test_a_file_that_vanishes_is_named(tmp_path: Path) -> None:
    source = make_folders(tmp_path / "in")
    dataset = open_dataset(source)
    (source / "covid" / "covid03-1.png").unlink()
    with pytest.raises(DataError, match=r"covid03-1\.png"):
        split_dataset(dataset, tmp_path / "out", SplitSpec())


@pytest.mark.parametrize("ratios", [(0, 50, 50), (60, -1, 20), (1, 0, 0), (float("nan"), 1, 1), (1e308,) * 3])
def test_ratios_that_divide_nothing_are_refused(ratios: tuple[float, float, float]) -> None:
    with pytest.raises(SpecError):
        SplitSpec(ratios=ratios)


def test_the_command_prints_counts_and_one_json_object(tmp_path: Path) -> None:
    source = make_folders(tmp_path / "in", classes=("covid", "normal", "pneumonia"))
    arguments = ["split", str(source), str(tmp_path / "out"), "--classes", "covid,normal", "--groups", r"([a-z]+\d+)-"]
    done = CliRunner().invoke(main, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["images"] == 48
    assert facts["counts"]["test"] == {"covid": 4, "normal": 4}
    assert facts["groups"] == 24
    text = CliRunner().invoke(main, [*arguments[:2], str(tmp_path / "second"), *arguments[3:]])
    assert "48 images in 24 groups, none in two splits" in text.stdout
    assert f"next: xfeat featurize {tmp_path / 'second'}" in text.stdout


def test_without_groups_the_command_does_not_speak_of_patients_it_does_not_know(tmp_path: Path) -> None:
    source = make_folders(tmp_path / "in")
    done = CliRunner().invoke(main, ["split", str(source), str(tmp_path / "out")])
    assert "out written: 48 images\n" in done.stdout
    assert "no patients are known: images of one patient may be in two splits; --groups" in done.stdout
    assert "group," not in done.stdout
    (source / "covid" / "copy.png").write_bytes((source / "covid" / "covid03-0.png").read_bytes())
    done = CliRunner().invoke(main, ["split", str(source), str(tmp_path / "again")])
    assert "49 images, 1 of them copies of others, in the split of the others" in done.stdout


def test_a_target_that_cannot_be_written_is_no_matter_of_an_option(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = CliRunner().invoke(main, ["split", str(make_folders(tmp_path / "in")), str(tmp_path / "file" / "out")])
    assert done.exit_code == 1
    assert "choose another DST" in done.stderr
    assert "with -o" not in done.stderr


def test_images_without_a_class_in_a_table_name_the_table(tmp_path: Path) -> None:
    make_folders(tmp_path)
    (tmp_path / "list.csv").write_text("path,label\ncovid/covid00-0.png,\n")
    with pytest.raises(DataError, match=r"list\.csv: images without a class: 1 of 1"):
        split_dataset(open_dataset(tmp_path / "list.csv"), tmp_path.parent / "out", SplitSpec())


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("Pneumonia/Viral", "class Pneumonia"),
        ("../../..", "hidden"),
        ("..", "hidden"),
        (".", "hidden"),
        (".x", "hidden"),
        ("/tmp", "in no class folder"),
        ("Thumbs", "in a folder of the system"),
    ],
)
def test_a_class_of_a_table_that_cannot_be_a_folder_is_refused(tmp_path: Path, label: str, said: str) -> None:
    make_folders(tmp_path / "in")
    rows = [(name, label if name.startswith("covid") else "normal") for name in files_of(tmp_path / "in")]
    (tmp_path / "in" / "list.csv").write_text("path,label\n" + "".join(f"{name},{label}\n" for name, label in rows))
    with pytest.raises(DataError, match=said) as caught:
        split_dataset(open_dataset(tmp_path / "in" / "list.csv"), tmp_path / "out", SplitSpec())
    assert "list.csv: as a file of class folders" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    "labels", [("a b", "ä, c"), ("=x", '"q"'), ("test", "train"), ("1", "images"), ("COVID", "covid")]
)
def test_classes_of_a_table_come_back_from_the_folders(tmp_path: Path, labels: tuple[str, str]) -> None:
    make_folders(tmp_path / "in")
    with (tmp_path / "in" / "list.csv").open("w", newline="") as file:
        rows = [(name, labels[name.startswith("covid")]) for name in files_of(tmp_path / "in")]
        csv.writer(file).writerows([("path", "label"), *rows])
    split_dataset(open_dataset(tmp_path / "in" / "list.csv"), tmp_path / "out", SplitSpec())
    assert open_dataset(tmp_path / "out").class_names == tuple(sorted(labels))


def test_names_that_are_not_utf_8_keep_their_groups(tmp_path: Path) -> None:
    make_folders(tmp_path / "in", classes=("covid", "Mélanome"))
    try:
        for patient in range(4):
            (tmp_path / "in" / "Mélanome" / os.fsdecode(b"\xff\xfe%d-0.png" % patient)).write_bytes(b"%d" % patient)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (tmp_path / "in" / "covid" / 'a, "b"\n-0.png').write_bytes(b"a line break")
    split_dataset(open_dataset(tmp_path / "in", groups=r"([^/]+)-\d\.png"), tmp_path / "out", SplitSpec())
    again = open_dataset(tmp_path / "out")
    assert len(again.entries) == 53
    assert all(entry.group for entry in again.entries)
    assert len({entry.group for entry in again.entries}) == 29


def test_unreadable_ratios_are_one_message(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["split", str(make_folders(tmp_path / "in")), str(tmp_path / "o"), "--ratios", "6"])
    assert done.exit_code == 2
    assert done.stderr.startswith("error: --ratios")
