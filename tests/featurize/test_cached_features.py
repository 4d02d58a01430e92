"""Ways out of a cache: arrays for scikit-learn, a table for pandas, an extractor of other images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import pytest

from tests.caches import extra_column, write_made_up
from xfeat.featurize.cached_features import CachedFeatures
from xfeat.featurize.datasets.column_choice import ColumnChoice
from xfeat.featurize.datasets.dataframe import manifest_of
from xfeat.featurize.errors import MismatchError, XfeatError

COUNT, DIM = 8, 3
FEATURES = np.random.default_rng(0).normal(size=(COUNT, DIM)).astype(np.float32)
COLUMNS = {
    "label": [0, 1, 0, 1, 0, 1, -1, 0],
    "split": [0, 0, 0, 1, 1, 2, 0, 255],
    "path": [f"{number}.png" for number in range(COUNT)],
    "group": ["a", "a", "b", "b", "", "", "c", "c"],
}


def made(path: Path, features: np.ndarray = FEATURES, **more: object) -> CachedFeatures:
    return CachedFeatures.of(write_made_up(path / "features.h5", features, COLUMNS, ["healthy", "ill"], **more))


@pytest.mark.parametrize(
    ("split", "rows"), [("train", [0, 1, 2]), ("valid", [3, 4]), ("test", [5]), (None, [0, 1, 2, 3, 4, 5, 7])]
)
@pytest.mark.parametrize("kind", ["float32", "float16", "views"])
def test_arrays_are_the_labelled_images_of_a_split(
    tmp_path: Path, split: str | None, rows: list[int], kind: str
) -> None:
    stored = FEATURES.astype(np.float16 if kind == "float16" else np.float32)
    features = np.stack([stored, stored + 1], axis=1) if kind == "views" else stored
    more = {"views": 2} if kind == "views" else {"dtype": kind}
    X, y, groups = made(tmp_path, features, **more).arrays(split)
    assert X.dtype == np.float32
    assert np.array_equal(X, stored[rows])
    assert y.tolist() == [["healthy", "ill"][COLUMNS["label"][row]] for row in rows]
    named = [COLUMNS["group"][row] or row for row in rows]
    assert len(set(groups.tolist())) == len(set(named))


@pytest.mark.parametrize("split", ["training", "", 0, "Train"])
def test_an_unknown_split_is_refused(tmp_path: Path, split: object) -> None:
    with pytest.raises(ValueError, match="unknown split"):
        made(tmp_path).arrays(split)  # type: ignore[arg-type]


def test_a_table_has_all_columns_of_their_kinds(tmp_path: Path) -> None:
    extra = {
        "age": extra_column("number", [30, None, *range(COUNT - 2)]),
        "sex": extra_column("category", ["f", None, *["m"] * (COUNT - 2)]),
        "note": extra_column("text", ["x", None, *["y"] * (COUNT - 2)]),
        "taken": extra_column("date", ["2024-12-31", None, *["2024-01-01"] * (COUNT - 2)]),
    }
    table = made(tmp_path, extra=extra).to_pandas()
    assert list(table) == ["path", "label", "split", "group", *extra, "f0", "f1", "f2"]
    assert np.array_equal(table[["f0", "f1", "f2"]].to_numpy(), FEATURES)
    assert table["age"].dtype == float
    assert table["sex"].dtype == "category"
    assert table["taken"].dtype.kind == "M"
    assert table[list(extra)].iloc[1].isna().all()
    assert table[["label", "split", "group"]].isna().sum().tolist() == [1, 1, 2]
    assert list(made(tmp_path).to_pandas(features=False)) == ["path", "label", "split", "group"]


def test_an_extractor_of_other_weights_or_settings_than_the_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="would compute other features"):
        made(tmp_path).extractor(workers=2)  # no file has the weights of this cache


def test_a_table_of_pandas_is_a_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table = pandas.DataFrame({"path": ["a.png", "b.png"], "label": ["x", "y"], "group": [1.0, None]})
    where, content = manifest_of(table, ColumnChoice())
    assert where.parent == tmp_path
    assert content.decode() == "path,label,group\na.png,x,1\nb.png,y,\n"
    there = table.assign(path=["/data/one/a.png", "/data/two/b.png"]).set_index("path")
    assert manifest_of(there, ColumnChoice())[0].parent == Path("/data")


WRONG = {
    "a list": ["a.png"],
    "an array": np.zeros(3),
    "no path": pandas.DataFrame({"label": ["x"]}),
    "columns of two levels": pandas.DataFrame({("a", "path"): ["a.png"]}),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_table_of_images_is_refused(kind: str) -> None:
    with pytest.raises(XfeatError) as refused:
        manifest_of(WRONG[kind], ColumnChoice())  # type: ignore[arg-type]
    assert isinstance(refused.value, ValueError | TypeError)
