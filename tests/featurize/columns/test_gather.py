"""Columns in a cache: with their rows through every kind of run, from tables and from DICOM files."""

from __future__ import annotations

import logging
import os
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import xfeat
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.columns import gather
from xfeat.featurize.datasets.column_choice import ColumnChoice
from xfeat.featurize.errors import SpecError

if TYPE_CHECKING:
    from conftest import Bench


def table(bench: Bench, name: str = "patients.csv", *, header: str = "path,age,sex", first: int = 20) -> Path:
    """Write a table with a row for each image of the bench: ages from ``first`` on, sexes in turn."""
    paths = sorted(path.relative_to(bench.data).as_posix() for path in bench.data.rglob("*.png"))
    rows = [f"{path},{first + number},{'FM'[number % 2]}" for number, path in enumerate(paths)]
    file = bench.data.parent / name
    file.write_text("\n".join([header, *rows]) + "\n")
    return file


def ages(cache: FeatureCache, name: str = "age") -> dict[str, str]:
    return dict(zip(cache.columns.path, cache.extra[name].texts(), strict=True))


def said(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.levelno >= level)


def test_another_table_rewrites_the_columns_and_computes_nothing(bench: Bench) -> None:
    bench.run(metadata=table(bench))
    before = bench.check()
    assert ages(before)["covid/000.png"] == "20"
    done = bench.run(metadata=table(bench, first=50))
    after = bench.check()
    assert (done.computed, done.reused, done.up_to_date) == (0, 12, False)
    assert ages(after)["covid/000.png"] == "50"
    assert after.spec.fingerprint == before.spec.fingerprint
    assert after.content_sha256 == before.content_sha256


def test_the_same_table_leaves_the_file_alone(bench: Bench) -> None:
    bench.run(metadata=table(bench))
    before = bench.state()
    assert bench.run(metadata=table(bench)).up_to_date
    assert bench.state() == before


def test_without_the_table_its_columns_go_and_that_is_said(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.run(metadata=table(bench))
    done = bench.run()
    assert (done.computed, len(bench.check().extra)) == (0, 0)
    assert "columns that the cache had from patients.csv are no longer in it: age, sex" in said(caplog)
    caplog.clear()
    bench.run()
    assert said(caplog) == ""


def test_columns_follow_their_rows(bench: Bench, art: Any) -> None:
    """Some classes, an image that cannot be read, a copy of an image, a new image, and an image that is gone."""
    file = table(bench)
    expected = dict(line.split(",")[:2] for line in file.read_text().splitlines()[1:])
    bench.run(metadata=file, classes=["normal"])
    assert ages(bench.check()) == {path: age for path, age in expected.items() if path.startswith("normal/")}
    (bench.data / "covid/001.png").write_bytes(b"broken")
    shutil.copy(bench.data / "covid/000.png", bench.data / "covid/002.png")
    (bench.data / "normal/003.png").unlink()
    art.draw(bench.data / "normal/zzz.png", seed=77)
    done = bench.run(metadata=file)
    assert [row.path for row in done.skipped] == ["covid/001.png"]
    del expected["covid/001.png"], expected["normal/003.png"]
    assert ages(bench.check()) == {**expected, "normal/zzz.png": ""}


def test_a_manifest_brings_its_columns_without_an_option(bench: Bench) -> None:
    file = table(bench, "data/list.csv", header="path,age,label")
    bench.run(data=file)
    cache = bench.check()
    assert (list(cache.extra), cache.extra["age"].source) == (["age"], "list.csv")


def test_kinds_may_be_asked_for_and_columns_left_out(bench: Bench) -> None:
    bench.run(metadata=table(bench), columns=ColumnChoice.parse("age:category,sex:ignore"))
    cache = bench.check()
    assert {name: cache.extra[name].kind for name in cache.extra} == {"age": "category"}


def test_remarks_of_one_kind_are_one_message(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    paths = sorted(path.relative_to(bench.data).as_posix() for path in bench.data.rglob("*.png"))
    header = "path," + ",".join(f"c{number:03}" for number in range(200))
    rows = [path + ",x" * 200 for path in paths]
    file = bench.data.with_name("wide.csv")
    file.write_text("\n".join([header, *rows]))
    bench.run(metadata=file)
    assert len(bench.check().extra) == 200
    assert said(caplog) == (
        "columns c000, c001, c002, c003, c004, c005, c006, c007, c008, c009, … and 190 more: "
        "the same value in every row that has one"
    )


# DICOM


TAGS = {"PatientSex": "F", "PatientAge": "034Y", "ViewPosition": "AP", "Modality": "CR", "StudyDate": "20241231"}


@pytest.fixture
def scans(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bench:
    """Return a bench whose images are DICOM files of two patients, with a secret of its own."""
    pytest.importorskip("pydicom", reason="needs the extra dicom")
    from tests.inputs.dicom.files import dicom_file

    monkeypatch.setenv("XFEAT_CACHE_DIR", str(tmp_path / "secrets"))
    shutil.rmtree(bench.data)
    for number, name in enumerate(("covid/1.dcm", "covid/2.dcm", "normal/IM3", "normal/4.dcm")):
        file = bench.data / name
        file.parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(number).integers(0, 4096, (40, 48)).astype(np.uint16)
        tags = {**TAGS, "PatientID": f"00{1 + number % 2}", "InstitutionName": "Kreiskrankenhaus Süd"}
        more = {"PatientAge": "006M", "StudyDate": ""} if number == 3 else {}
        charset = {"SpecificCharacterSet": "ISO_IR 192"}
        file.write_bytes(dicom_file(values, WindowCenter=2048, WindowWidth=4096, **charset, **{**tags, **more}))
    return bench


def test_dicom_files_fill_columns_and_the_patient_is_a_hash(scans: Bench) -> None:
    scans.run()
    cache = FeatureCache.open(scans.output)
    found = {name: cache.extra[name].texts() for name in cache.extra}
    patients = found.pop("PatientHash")
    assert found == {
        "PatientSex": ["F"] * 4,
        "PatientAge": ["34", "34", "0.5", "34"],
        "ViewPosition": ["AP"] * 4,
        "Modality": ["CR"] * 4,
        "InstitutionName": ["Kreiskrankenhaus Süd"] * 4,
        "StudyDate": ["2024-12-31", "2024-12-31", "", "2024-12-31"],
    }
    assert {name: cache.extra[name].kind for name in ("PatientAge", "StudyDate", "PatientSex")} == {
        "PatientAge": "number",
        "StudyDate": "date",
        "PatientSex": "category",
    }
    assert patients[0] == patients[3] != patients[1] == patients[2]
    assert cache.columns.group == patients
    assert all(len(patient) == 16 for patient in patients)
    content = scans.output.read_bytes()
    assert b"\x00001\x00" not in content
    secret = gather.patient_key()
    assert secret not in content
    assert stat.S_IMODE(os.stat(Path(os.environ["XFEAT_CACHE_DIR"]) / "patient-key").st_mode) == 0o600


def test_an_unchanged_dicom_file_is_not_read_again(scans: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    scans.run()
    before = FeatureCache.open(scans.output)
    expected = {name: before.extra[name] for name in before.extra}
    with monkeypatch.context() as patch:
        patch.setattr(gather, "_tags", lambda *_: pytest.fail("read"))
        scans.run()
    after = FeatureCache.open(scans.output)
    assert all(after.extra[name].same_as(column) for name, column in expected.items())


def test_with_another_secret_all_patients_are_hashed_anew(scans: Bench, art: Any) -> None:
    """Or a patient whose images came at two times, on two machines, would be in two groups."""
    scans.run()
    before = FeatureCache.open(scans.output).columns.group
    shutil.rmtree(os.environ["XFEAT_CACHE_DIR"])
    scans.run()
    after = FeatureCache.open(scans.output).columns.group
    assert set(before).isdisjoint(after)
    assert [after.index(group) for group in after] == [before.index(group) for group in before]


def test_given_groups_win_and_tables_too(scans: Bench) -> None:
    file = scans.data.with_name("more.csv")
    file.write_text("path,patientsex\ncovid/1.dcm,M\n")
    scans.run(groups=r"(\d)", metadata=file)
    cache = FeatureCache.open(scans.output)
    assert cache.columns.group == ["1", "2", "4", "3"]
    assert cache.extra["patientsex"].texts() == ["M", "", "", ""]
    assert "PatientSex" not in cache.extra
    scans.run()  # what the first run did not look for is read
    assert FeatureCache.open(scans.output).extra["PatientSex"].texts() == ["F"] * 4


def test_a_dicom_column_can_be_left_out_and_comes_back(scans: Bench) -> None:
    scans.run(columns=ColumnChoice.parse("InstitutionName:ignore,PatientAge:category"))
    cache = FeatureCache.open(scans.output)
    assert "InstitutionName" not in cache.extra
    assert cache.extra["PatientAge"].kind == "category"
    scans.run()
    assert FeatureCache.open(scans.output).extra["InstitutionName"].known.all()


@pytest.mark.parametrize("columns", ["sex=PatientSex", "age=PatientAge,age:number", "group=PatientHash"])
def test_a_dicom_column_keeps_its_name(scans: Bench, columns: str) -> None:
    with pytest.raises(SpecError, match=r"whose columns keep their names(.|\n)*Patient\w+:ignore leaves it away"):
        scans.run(columns=ColumnChoice.parse(columns))


def test_one_patient_id_for_all_is_no_group(scans: Bench, caplog: pytest.LogCaptureFixture) -> None:
    import pydicom

    for file in scans.data.rglob("*.*"):
        if file.is_file():
            picture = pydicom.dcmread(file)
            picture.PatientID = "ANON"
            picture.save_as(file)
    (scans.data / "normal/IM3").unlink()
    scans.run()
    assert FeatureCache.open(scans.output).columns.group == ["", "", ""]
    assert "all DICOM files have the same PatientID" in said(caplog)


def test_a_large_private_tag_in_front_is_no_obstacle(scans: Bench) -> None:
    import pydicom

    for file in scans.data.rglob("*.dcm"):
        picture = pydicom.dcmread(file)
        picture.add_new(0x00090010, "LO", "MAKER")
        picture.add_new(0x00091001, "OB", bytes(200_000))
        picture.save_as(file)
    scans.run()
    assert FeatureCache.open(scans.output).extra["PatientSex"].known.all()


# xfeat split


def test_a_split_keeps_columns_beside_the_images(bench: Bench, tmp_path: Path) -> None:
    file = table(bench)
    rows = [row.split(",") for row in file.read_text().splitlines()[1:]]
    expected = {(bench.data / path).read_bytes(): age for path, age, _ in rows}
    done = xfeat.split(bench.data, tmp_path / "divided", metadata=file, columns="sex:ignore")
    assert done.columns_file == tmp_path / "divided/metadata.csv"
    bench.data = tmp_path / "divided"
    bench.run(metadata=done.columns_file)
    cache = bench.check()
    found = {(bench.data / path).read_bytes(): age for path, age in ages(cache).items()}
    assert found == expected
    assert set(cache.extra) == {"age"}


def test_a_split_of_dicom_files_keeps_patients_together(scans: Bench, tmp_path: Path) -> None:
    done = xfeat.split(scans.data, tmp_path / "divided", ratios=(50, 0, 50))
    split_of: dict[str, set[str]] = {}
    for image in done.images:
        split_of.setdefault(image.group, set()).add(image.path.split("/")[0])
    assert (done.groups, done.named_groups) == (2, True)
    assert sorted(map(sorted, split_of.values())) == [["test"], ["train"]]
    scans.data = tmp_path / "divided"
    scans.run()
    assert set(FeatureCache.open(scans.output).columns.group) == set(split_of)
