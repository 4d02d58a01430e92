"""The further columns of a cache: written, read when used, and refused where they cannot be right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.caches import edit_cache, extra_column, header_of, write_made_up
from xfeat.featurize.cache.extra import ExtraColumn, columns_digest
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.errors import CacheError

ROWS = {"label": [0, 1, 0], "split": [0, 0, 2], "path": ["a.png", "b.png", "c.png"]}
COLUMNS = {
    "age": extra_column("number", [34.5, None, 2]),
    "sex": extra_column("category", ["F", None, "M"]),
    "Größe / note": extra_column("text", ["weiß", "", "x" * 70]),
    "..": extra_column("text", ["a", "b", "c"]),
    "visit": extra_column("date", ["2024-02-29", None, "1931-12-31"]),
    "findings": ExtraColumn("labels", np.array([[1, 0], [-1, -1], [1, 1]], np.int8), ("mass", "effusion")),
}
TEXTS = {
    "age": ["34.5", "", "2"],
    "sex": ["F", "", "M"],
    "Größe / note": ["weiß", "", "x" * 70],
    "..": ["a", "b", "c"],
    "visit": ["2024-02-29", "", "1931-12-31"],
    "findings": ["mass", "", "mass|effusion"],
}


def made(path: Path, extra: dict[str, ExtraColumn] = COLUMNS) -> FeatureCache:
    return write_made_up(path / "features.h5", np.zeros((3, 4), np.float32), ROWS, ["covid", "normal"], extra=extra)


def test_columns_of_every_kind_come_back_as_they_were(tmp_path: Path) -> None:
    extra = made(tmp_path).extra
    assert {name: extra[name].texts() for name in extra} == TEXTS
    assert all(extra[name].same_as(column) for name, column in COLUMNS.items())
    assert [extra[name].known.tolist() for name in ("age", "visit", "findings")] == [[True, False, True]] * 3
    assert not extra["age"].same_as(COLUMNS["age"]._replace(source="other.csv"))
    assert len(made(tmp_path, {}).extra) == 0


def test_other_programs_find_the_columns_under_their_names(tmp_path: Path) -> None:
    made(tmp_path)
    with h5py.File(tmp_path / "features.h5") as file:
        assert set(file["extra"]) == {"age", "sex", "visit", "findings", "Größe %2F note", "%2E%2E"}
        assert file["extra/Größe %2F note"].asstr()[0] == "weiß"


def test_columns_are_no_part_of_the_content_but_of_the_files_digest(tmp_path: Path) -> None:
    bare = made(tmp_path, {}).content_sha256
    assert made(tmp_path).content_sha256 == bare
    file = tmp_path / "features.h5"
    content = bytearray(file.read_bytes())
    content[header_of(file)["arrays"]["extra/age"]["offset"]] ^= 1
    file.write_bytes(content)
    with pytest.raises(CacheError, match="have changed since it was written"):
        FeatureCache.open(file)


@pytest.mark.parametrize(
    ("about", "found"),
    [
        ({"age": {"kind": "category", "names": ["a"]}}, "has the type <f8"),
        ({"sex": {"kind": "category", "names": "FM"}}, "no texts"),
        ({"sex": {"kind": "category", "names": [1, 2]}}, "no texts"),
        ({"gone": {"kind": "number", "names": []}}, "nothing is stored for the column gone"),
        ({"sex": {"kind": "labels", "names": ["F", "M"]}}, "the column sex has the type"),
        ({"sex": {"kind": "category", "names": [], "source": 7}}, "nothing is stored for the column sex"),
    ],
)
def test_a_header_that_contradicts_its_columns_is_refused(about: Any, found: str, tmp_path: Path) -> None:
    made(tmp_path)
    edit_cache(tmp_path / "features.h5", extra=about)
    with pytest.raises(CacheError, match=found):
        FeatureCache.open(tmp_path / "features.h5")


def test_a_code_outside_the_names_is_refused_when_it_is_read(tmp_path: Path) -> None:
    made(tmp_path)
    edit_cache(tmp_path / "features.h5", extra={"sex": {"kind": "category", "names": ["F"]}})
    with pytest.raises(CacheError, match="the column sex is outside its names"):
        FeatureCache.open(tmp_path / "features.h5").extra["sex"]


@pytest.mark.parametrize("kind", ["interval", None, [], {"a": 1}])
def test_a_kind_of_a_later_version_is_left_out(kind: Any, tmp_path: Path) -> None:
    made(tmp_path)
    edit_cache(tmp_path / "features.h5", extra={"age": {"kind": kind, "names": []}})
    assert dict(FeatureCache.open(tmp_path / "features.h5").extra) == {}


def test_the_digest_of_the_columns_changes_with_each_of_them(tmp_path: Path) -> None:
    changed = [
        COLUMNS | {"age": extra_column("number", [34.5, None, 3])},
        COLUMNS | {"sex": extra_column("category", ["F", None, "D"])},
        COLUMNS | {"visit": extra_column("date", ["2024-02-28", None, "1931-12-31"])},
        {name: column for name, column in COLUMNS.items() if name != "age"},
        {f"{name}_": column for name, column in COLUMNS.items()},
    ]
    digests = {columns_digest(made(tmp_path, columns).extra) for columns in (COLUMNS, *changed)}
    assert len(digests) == 6
    assert columns_digest(made(tmp_path).extra) == columns_digest(COLUMNS)
    assert columns_digest({}) == ""
