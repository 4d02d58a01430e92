"""A cache as a table and a table as a cache: what comes back, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import xfeat
from tests.caches import extra_column, write_made_up
from xfeat.featurize.cache.columns import CacheDescription, Correction, Skipped
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.cache.writer import write_cache
from xfeat.featurize.errors import DataError, XfeatError

ROWS, DIM = 7, 12
KINDS = ["parquet", "npz", "csv"]


def made_up(path: Path, dtype: str = "float32", views: int = 1, **more: Any) -> FeatureCache:
    """Write a cache whose numbers need all their digits, with every kind of further column."""
    random = np.random.default_rng(0)
    shape = (ROWS, DIM) if views == 1 else (ROWS, views, DIM)
    features = (random.standard_normal(shape) * 10.0 ** random.integers(-30, 10, shape)).astype(np.float32)
    if dtype == "float16":
        features = random.standard_normal(shape).astype(np.float16)
    columns = {
        "label": [0, 1, 0, 1, -1, 0, 1],
        "split": [0, 0, 1, 1, 2, 255, 255],
        "path": [f"{'äß ,' if n == 6 else 'a'}/{n}.png" for n in range(ROWS)],
        "group": ["007", "7", "", "p 1", "p,2", '"q"', "x"],
    }
    return write_made_up(path, features, columns, ["b;1", "ä"], dtype=dtype, views=views, **more)


EXTRA = {
    "age": extra_column("number", [1.5, 0.1, np.nan, 1e-300, -0.0, 3.0, 2.0 / 3]),
    "sex": extra_column("category", ["f", "m", "", "m", "f", "f", "m"]),
    "f3": extra_column("text", ["", "é", "a,b", 'c"d', "1", "2", "3"]),
    "day": extra_column("date", ["2024-01-31", "", "1999-12-31", "", "", "", "2020-02-29"]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "views"), [("float32", 1), ("float16", 1), ("float32", 3)])
def test_what_is_dumped_comes_back_bit_for_bit(tmp_path: Path, kind: str, dtype: str, views: int) -> None:
    cache = made_up(tmp_path / "a.h5", dtype, views, extra=EXTRA)
    xfeat.dump(cache.path, tmp_path / f"x.{kind}")
    done = xfeat.load(tmp_path / f"x.{kind}", tmp_path / "b.h5")
    again = done.cache
    assert done.restored
    assert again.features.dtype == cache.features.dtype
    assert again.features.tobytes() == cache.features.tobytes()
    assert (again.spec, again.class_names, again.content_sha256) == (
        cache.spec,
        cache.class_names,
        cache.content_sha256,
    )
    for name in ("path", "group", "sha256"):
        assert list(getattr(again.columns, name)) == list(getattr(cache.columns, name))
    for name in ("label", "split", "size", "truncated"):
        assert np.array_equal(getattr(again.columns, name), getattr(cache.columns, name)), name
    assert list(again.extra) == list(cache.extra)
    for name, column in cache.extra.items():
        assert again.extra[name].same_as(column), name


def test_skipped_images_and_the_data_root_come_back(tmp_path: Path) -> None:
    cache = made_up(tmp_path / "a.h5")
    described = CacheDescription(
        spec=cache.spec,
        class_names=cache.class_names,
        data_root="s3://bucket/images",
        weights_path="",
        columns=cache.columns,
        skipped=[Skipped("a/broken.png", "HTML page")],
        layout="2 classes",
        corrections=(Correction("a/1.png", "exclude", "", "blank"),),
    )
    write_cache(tmp_path / "c.h5", described, blocks=[(0, np.array(cache.features))], dim=DIM)
    xfeat.dump(tmp_path / "c.h5", tmp_path / "x.parquet")
    again = xfeat.load(tmp_path / "x.parquet", tmp_path / "b.h5").cache
    assert again.skipped == described.skipped
    assert again.corrections == described.corrections
    assert (again.data_root, again.layout) == ("s3://bucket/images", "2 classes")


def frame(**columns: Any) -> pd.DataFrame:
    """Return a table of six images with 12 features."""
    random = np.random.default_rng(1)
    table = pd.DataFrame({"path": [f"{n}.png" for n in range(6)], "label": list("ababab")})
    for name, values in columns.items():
        table[name.replace("__", " ")] = values
    return pd.concat([table, pd.DataFrame({f"f{n}": random.standard_normal(6) for n in range(DIM)})], axis=1)


def written(table: pd.DataFrame, path: Path, **options: Any) -> Path:
    if path.suffix == ".csv":
        table.to_csv(path, **{"index": False, **options})
    else:
        table.to_parquet(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_features_made_elsewhere_are_known_by_their_content(tmp_path: Path, suffix: str) -> None:
    table = frame(
        patient=[1, 1, 2, 2, 3, 3], split=["train", "val", "dev", "validation", "test", None], age=[1, 2, 3, 4, 5, 6.5]
    )
    shuffled = table[["f10", *[name for name in table if name != "f10"]]].iloc[::-1]
    done = xfeat.load(written(shuffled, tmp_path / f"x{suffix}"), tmp_path / "a.h5")
    cache = done.cache
    assert not done.restored
    assert cache.spec.backbone == "loaded:x"
    assert cache.columns.path == sorted(table["path"])
    expected = table.sort_values("path")[[f"f{n}" for n in range(DIM)]].to_numpy().astype(np.float32)
    assert np.array_equal(cache.features, expected)
    assert cache.columns.group == ["1", "1", "2", "2", "3", "3"]
    assert cache.columns.split.tolist() == [0, 1, 1, 1, 2, 255]
    assert cache.extra["age"].values.tolist() == [1, 2, 3, 4, 5, 6.5]
    assert len(set(cache.group_keys.tolist())) == 3, "no image is a copy of another"
    table.loc[0, "label"] = "b"
    other = xfeat.load(written(table, tmp_path / f"x{suffix}"), tmp_path / "b.h5").cache
    assert other.spec.fingerprint != cache.spec.fingerprint


def lists(values: list[list[float]], kind: pa.DataType) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        names = [f"{n}.png" for n in range(len(values))]
        pq.write_table(
            pa.table({"path": names, "label": names, "features": pa.array(values, kind)}), folder / "x.parquet"
        )
        return folder / "x.parquet"

    return write


def arrays(**values: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        np.savez(folder / "x.npz", **values)
        return folder / "x.npz"

    return write


def flagged(at: int, value: int) -> Callable[[Path], Path]:
    """Write arrays whose last one has another byte in the list of the archive."""

    def write(folder: Path) -> Path:
        file = arrays(X=X, y=np.zeros(3))(folder)
        content = bytearray(file.read_bytes())
        content[content.rfind(b"PK\1\2") + at] = value
        file.write_bytes(content)
        return file

    return write


def text(content: str, encoding: str = "utf-8") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "x.csv").write_bytes(content.encode(encoding))
        return folder / "x.csv"

    return write


def of(**columns: Any) -> Callable[[Path], Path]:
    return lambda folder: written(frame(**columns), folder / "x.csv")


def changed(name: str, row: int, value: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        table = frame().astype(object)
        table.loc[row, name] = value
        return written(table, folder / "x.csv")

    return write


HEAD = "path,label,f0,f1\n"
X = np.ones((3, 2), np.float32)
ABC = np.array(list("abc"))
READ: dict[str, tuple[Callable[[Path], Path], list[str], list[str]]] = {
    "labels that are integers": (of(label=[0, 1, 0, 1, 0, 1]), ["0", "1"], []),
    "labels that pandas made of integers": (of(label=[0.0, 1.0, None, 1.0, 0.0, 1.0]), ["0", "1"], []),
    "codes with zeros": (text(HEAD + "a,01,1,2\nb,1,1,2\n"), ["01", "1"], []),
    "semicolons and decimal commas": (text("path;label;f0;f1\na;x;1,5;2\nb;y;1,25;2\n"), ["x", "y"], []),
    "UTF-16": (text(HEAD + "a,ä,1,2\nb,ö,1,2\n", "utf-16"), ["ä", "ö"], []),
    "a byte order mark": (text(HEAD + "a,x,1,2\n", "utf-8-sig"), ["x"], []),
    "tabs": (text(HEAD.replace(",", "\t") + "a\tx\t1\t2\n"), ["x"], []),
    "an index of pandas": (lambda folder: written(frame(), folder / "x.csv", index=True), ["a", "b"], []),
    "numbers as names": (text("path,label,0,1\na,x,1,2\n"), ["x"], []),
    "other names": (text("filename;finding;feature_1;feature_2\na;x;1;2\n"), ["x"], []),
    "a float64 list": (lists([[1, 2], [3, 4]], pa.list_(pa.float64())), ["0.png", "1.png"], []),
    "a float16 list": (lists([[1, 2], [3, 4]], pa.list_(pa.float16(), 2)), ["0.png", "1.png"], []),
    "arrays without paths": (arrays(X=X, y=np.array([1, 0, 1])), ["0", "1"], []),
    "arrays of bytes": (
        arrays(features=X, path=np.array([b"a", b"b", b"c"]), label=np.array(["u", "v", "u"])),
        ["u", "v"],
        [],
    ),
    "extra columns": (of(view=list("ppaapp"), note=["x"] * 6), ["a", "b"], ["view", "note"]),
    "quoted line ends": (text('path,label,remark,f0,f1\na,x,"one\ntwo",1,2\nb,y,,3,4\n'), ["x", "y"], ["remark"]),
}


@pytest.mark.parametrize("kind", READ)
def test_tables_as_programs_write_them_are_read(tmp_path: Path, kind: str) -> None:
    write, classes, extra = READ[kind]
    cache = xfeat.load(write(tmp_path), tmp_path / "a.h5").cache
    assert list(cache.class_names) == classes
    assert list(cache.extra) == extra
    cache.verify()


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no label": (text("path,f0,f1\na,1,2\n"), "the column label is missing"),
    "no path": (text("label,f0,f1\na,1,2\n"), "the column path is missing"),
    "no features": (text("path,label,g\na,x,2\n"), "it has no features"),
    "the same path twice": (text(HEAD + "a,x,1,2\n./a,x,1,2\n"), "2 rows whose path stands there twice"),
    "an empty path": (text(HEAD + ",x,1,2\n"), "1 row without a path"),
    "NaN": (changed("f3", 2, "nan"), "row 3"),
    "infinite": (changed("f3", 2, "inf"), "row 3"),
    "too large for float32": (changed("f3", 2, "1e60"), "row 3"),
    "an empty cell": (changed("f3", 4, None), "row 5"),
    "text in f3": (changed("f3", 2, "abc"), "row 3: the cell in f3 is no number"),
    "a row too short": (text(HEAD + "a,x,1,2\nb,x,1\n"), "cannot be read"),
    "a gap": (text("path,label,f0,f2\na,x,1,2\n"), "without f1"),
    "one feature twice": (text("path,label,f1,f01\na,x,1,2\n"), "two columns of one feature"),
    "a column twice": (text("path,label,f0,f0\na,x,1,2\n"), "columns of the same name"),
    "two kinds of features": (text("path,label,x0,x1,dim0,dim1\na,x,1,2,3,4\n"), "several kinds of columns"),
    "no rows": (text(HEAD), "no rows"),
    "nothing": (text(""), "it has no features"),
    "an unknown split": (text("path,label,split,f0,f1\na,x,later,1,2\n"), "unknown split"),
    "lists of two lengths": (
        lists([[1, 2], [3]], pa.list_(pa.float32())),
        "another number of features than 2",
    ),
    "an empty list": (lists([[], []], pa.list_(pa.float32())), "so many features are not possible"),
    "a list of text": (lists([["a"], ["b"]], pa.list_(pa.string())), "are no numbers"),  # type: ignore[list-item]
    "a missing list": (lists([[1.0], None], pa.list_(pa.float32())), "1 row without features"),  # type: ignore[list-item]
    "NaN in a list": (lists([[1.0], [float("nan")]], pa.list_(pa.float32())), "row 2"),
    "a gap in a list": (lists([[1.0, 2.0], [3.0, None]], pa.list_(pa.float32())), "row 2"),  # type: ignore[list-item]
    "a gap in a list of one length": (lists([[1.0, 2.0], [3.0, None]], pa.list_(pa.float32(), 2)), "row 2"),  # type: ignore[list-item]
    "objects": (
        arrays(features=X, label=np.array([None, "a", 1], object), path=np.array(list("abc"))),
        "Python objects",
    ),
    "arrays of two lengths": (arrays(features=X, label=np.array(list("ab"))), "differ in length"),
    "columns in Fortran's order": (arrays(X=np.asfortranarray(np.ones((3, 2))), y=np.zeros(3)), "stored by columns"),
    "no parquet": (lambda folder: text("PAR1 no")(folder).rename(folder / "x.parquet"), "cannot be read"),
    "no zip": (lambda folder: text("abc")(folder).rename(folder / "x.npz"), "cannot be read"),
    "a zip of a later version": (flagged(6, 110), "cannot be read"),
    "an encrypted zip": (flagged(8, 1), "cannot be read"),
    "another compression": (flagged(10, 99), "cannot be read"),
    "no such file": (lambda folder: folder / "none.csv", "No such file"),
    "another suffix": (lambda folder: folder / "x.txt", "unknown kind of table"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_table_that_cannot_be_right_is_refused(tmp_path: Path, kind: str) -> None:
    write, words = REFUSED[kind]
    with pytest.raises(XfeatError, match=words) as refused:
        xfeat.load(write(tmp_path), tmp_path / "a.h5")
    assert len(str(refused.value)) < 1200
    assert not (tmp_path / "a.h5").exists()


def test_columns_are_named_by_the_user(tmp_path: Path) -> None:
    file = text("where,what,label,f0,f1\na,x,9,1,2\nb,y,8,1,2\n")(tmp_path)
    cache = xfeat.load(file, tmp_path / "a.h5", columns="path=where,label=what").cache
    assert (cache.class_names, cache.columns.path) == (("x", "y"), ["a", "b"])


def test_an_edited_dump_has_no_encoder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made_up(tmp_path / "a.h5")
    xfeat.dump(tmp_path / "a.h5", tmp_path / "x.csv")
    table = pd.read_csv(tmp_path / "x.csv", dtype=str)
    table.loc[0, "f0"] = "1.5"
    table.to_csv(tmp_path / "x.csv", index=False)
    cache = xfeat.load(tmp_path / "x.csv", tmp_path / "b.h5").cache
    assert cache.spec.backbone == "loaded:x"
    assert "not the features that were dumped" in caplog.text


@pytest.mark.parametrize("column", ["sha256", "size", "truncated"])
@pytest.mark.parametrize("edit", ["removed", "other", "empty"])
def test_a_dump_without_what_it_says_of_files_is_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, column: str, edit: str
) -> None:
    cache = made_up(tmp_path / "a.h5")
    xfeat.dump(cache.path, tmp_path / "x.csv")
    table = pd.read_csv(tmp_path / "x.csv", dtype=str, keep_default_na=False)
    edited = table.drop(columns=column) if edit == "removed" else table.assign(**{column: "many" * (edit == "other")})
    edited.to_csv(tmp_path / "x.csv", index=False)
    again = xfeat.load(tmp_path / "x.csv", tmp_path / "b.h5").cache
    assert again.spec == cache.spec
    assert len(set(again.columns.sha256)) == ROWS, "no image is a copy of another"
    if column != "truncated" or edit == "removed":
        assert set(again.columns.size.tolist()) == {-1}
        assert "is not what was dumped" in caplog.text


def test_an_existing_cache_is_kept(tmp_path: Path) -> None:
    made_up(tmp_path / "a.h5")
    before = (tmp_path / "a.h5").read_bytes()
    with pytest.raises(XfeatError, match="--force"):
        xfeat.load(of()(tmp_path), tmp_path / "a.h5")
    assert (tmp_path / "a.h5").read_bytes() == before
    assert len(xfeat.load(of()(tmp_path), tmp_path / "a.h5", force=True).cache) == 6


def test_features_without_an_encoder_say_how_to_name_it(tmp_path: Path) -> None:
    cache = xfeat.load(of()(tmp_path), tmp_path / "a.h5").cache
    from xfeat.featurize.backbones.registry import backbone_info

    with pytest.raises(XfeatError, match="xfeat load TABLE"):
        backbone_info(cache.spec.backbone)


def test_the_note_of_a_csv_file_is_json_beside_it(tmp_path: Path) -> None:
    made_up(tmp_path / "a.h5")
    xfeat.dump(tmp_path / "a.h5", tmp_path / "x.csv")
    note = json.loads((tmp_path / "x.csv.json").read_text())
    assert note["format"] == "xfeat.dump"
    (tmp_path / "x.csv.json").write_text('{"format": "other"}')
    with pytest.raises(DataError, match="damaged"):
        xfeat.load(tmp_path / "x.csv", tmp_path / "b.h5")
