"""A ``features.h5`` that claims what it does not hold is one error, before any memory or time is spent on it.

Whoever forges a file can forge its digests, too: they are right in all of these.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.caches import edit_cache, header_of, write_made_up
from xfeat.featurize.cache.layout import BLOCK_BYTES
from xfeat.featurize.cache.reader import FeatureCache, stored_digest
from xfeat.featurize.errors import CacheError

ROWS, DIM = 5, 4


@pytest.fixture
def path(tmp_path: Path) -> Path:
    columns = {"label": [0, 1, 0, 1, -1], "split": [0, 0, 1, 2, 255], "path": [f"{row}.png" for row in range(ROWS)]}
    return write_made_up(tmp_path / "c.h5", np.ones((ROWS, DIM), np.float32), columns, ["a", "b"]).path


def place(name: str, **changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda header: header["arrays"][name].update(changes)


def key(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda header: header.__setitem__(name, value)


def all_rows(count: int) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        for one in header["arrays"].values():
            one["shape"][0] = count

    return change


def nested(depth: int) -> Any:
    return json.loads("[" * depth + "]" * depth)


FORGED = {
    "a trillion rows": all_rows(10**12),
    "no rows": all_rows(0),
    "one row more": all_rows(ROWS + 1),
    "negative rows": all_rows(-1),
    "other rows of features": place("features", shape=[ROWS + 1, DIM]),
    "other rows of a column": place("size", shape=[ROWS - 1]),
    "wide features": place("features", shape=[ROWS, 10**9]),
    "more digits than a number has": place("features", shape=[ROWS, 10**3000]),
    "features without columns": place("features", shape=[ROWS, 0]),
    "features of no dimension": place("features", shape=[]),
    "features of one dimension": place("features", shape=[ROWS]),
    "features with views that the settings do not have": place("features", shape=[ROWS, 2, 2]),
    "features of four dimensions": place("features", shape=[ROWS, 1, 2, 2]),
    "features beyond the end": place("features", offset=10**9),
    "features before the start": place("features", offset=-1),
    "features at a fraction": place("features", offset=1024.5),
    "big-endian features": place("features", dtype=">f4"),
    "features of objects": place("features", dtype="|O8"),
    "features of another precision than the settings": place("features", dtype="<f2"),
    "double features": place("features", dtype="<f8", shape=[ROWS, DIM // 2]),
    "compound features": place("features", dtype="[('a', '<f4')]"),
    "labels of another type": place("label", dtype="<i8", shape=[ROWS]),
    "labels in a table": place("label", shape=[ROWS, 1]),
    "paths of a gigabyte": place("path", shape=[1 << 30]),
    "paths of another width": place("path", dtype="|S2"),
    "paths as bytes": place("path", dtype="|u1"),
    "paths as numbers": place("path", dtype="<i8"),
    "paths in a table": place("path", shape=[ROWS, 1]),
    "fewer paths": place("path", shape=[ROWS - 1]),
    "no paths": place("path", shape=[0]),
    "digests without a width": place("sha256", dtype="|S"),
    "digests of no width": place("sha256", dtype="|S0"),
    "digests of another width": place("sha256", dtype="|S32"),
    "no place": lambda header: header["arrays"].pop("path"),
    "a place without offset": lambda header: header["arrays"]["path"].pop("offset"),
    "a place that is a list": lambda header: header["arrays"].update(path=[1, 2]),
    "a further column beyond the end": lambda header: header["arrays"].update(
        {"extra/age": {"dtype": "<f8", "shape": [10**12], "offset": 1}}
    ),
    "a further column of objects": lambda header: header["arrays"].update(
        {"extra/age": {"dtype": "|O8", "shape": [1], "offset": 1}}
    ),
    "no settings": lambda header: header.pop("spec"),
    "settings that are no object": key("spec", 1),
    "an unknown setting": lambda header: header["spec"].update(colour=1),
    "another fingerprint": key("fingerprint", "0" * 16),
    "class names that are numbers": key("class_names", [1, 2]),
    "fewer class names than labels": key("class_names", ["a"]),
    "splits in another order": key("split_names", ["valid", "train", "test"]),
    "no class names": key("class_names", None),
    "a skipped image without a reason": key("skipped", [["a.png"]]),
    "a skipped image that is a number": key("skipped", [1]),
    "skipped images in depth": key("skipped", nested(900)),
    "counts that are text": key("left_out", {"a mask": {"files": "1", "suffixes": {}, "example": ""}}),
    "versions that are a list": key("versions", ["1"]),
    "a digest that is a number": key("content_sha256", 1),
    "a root that is a number": key("data_root", 1),
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
def test_a_forged_header_is_one_error(path: Path, forge: Callable[[dict[str, Any]], None]) -> None:
    forge(header := header_of(path))
    edit_cache(path, replaced=header)
    with pytest.raises(CacheError) as problem:
        FeatureCache.open(path)
    assert problem.value.file == path
    assert problem.value.fix
    stored_digest(path)


BLOCKS = {
    "a later version": ({"schema_version": 3}, "version 3"),
    "a version of many digits": ({"schema_version": 10**300}, "another schema version"),
    "version 0": ({"schema_version": 0}, "another schema version"),
    "a negative version": ({"schema_version": -1}, "another schema version"),
    "a version as text": ({"schema_version": "2"}, "schema_version"),
    "a version that is a fraction": ({"schema_version": 2.5}, "schema_version"),
    "a header beyond the end": ({"header_offset": 10**12}, "end is missing"),
    "a header before the start": ({"header_offset": -1}, "end is missing"),
    "an endless header": ({"header_bytes": 10**12}, "end is missing"),
    "an empty header": ({"header_bytes": 0}, "not valid JSON"),
    "a negative length": ({"header_bytes": -1}, "end is missing"),
    "a header in the middle of an array": ({"header_offset": BLOCK_BYTES}, "not valid JSON"),
    "a header that is the block": ({"header_offset": 0, "header_bytes": BLOCK_BYTES}, "nothing is stored for"),
    "no digest": ({"sha256": None}, "sha256"),
    "another digest": ({"sha256": "0" * 64}, "have changed since it was written"),
}


@pytest.mark.parametrize(("changes", "said"), BLOCKS.values(), ids=BLOCKS)
def test_a_forged_user_block_is_one_error(path: Path, changes: dict[str, Any], said: str) -> None:
    content = path.read_bytes()
    block = json.dumps({**json.loads(content[:BLOCK_BYTES]), **changes}).encode()
    path.write_bytes(block.ljust(BLOCK_BYTES) + content[BLOCK_BYTES:])
    with pytest.raises(CacheError, match=rf"(?s){said}.*fix"):
        FeatureCache.open(path)


@pytest.mark.parametrize("text", [b"[]", b"null", b"\xff", b'{"arrays": NaN}', b"[" * 100_000, b"9" * 5_000])
def test_a_header_that_is_not_the_expected_json_is_one_error(path: Path, text: bytes) -> None:
    edit_cache(path, replaced=text)
    with pytest.raises(CacheError, match=r"(?s)damaged.*fix"):
        FeatureCache.open(path)


def test_a_text_with_nul_is_one_error(path: Path) -> None:
    edit_cache(path, {"path": np.array([b"a\0b"] * ROWS)})
    with pytest.raises(CacheError, match="a text contains NUL"):
        FeatureCache.open(path, check=False)


def test_a_byte_of_a_truth_value_that_is_neither_0_nor_1_is_true(path: Path) -> None:
    place = header_of(path)["arrays"]["truncated"]
    content = bytearray(path.read_bytes())
    content[place["offset"] + 2] = 7
    path.write_bytes(content)
    edit_cache(path)
    assert FeatureCache.open(path).columns.truncated.tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("size", [1, 64, 512, 8192])
def test_zeros_at_every_place_are_noticed(path: Path, size: int) -> None:
    content = path.read_bytes()
    features = header_of(path)["arrays"]["features"]
    for start in range(0, len(content), max(size // 2, 41)):
        zeros = bytes(len(content[start : start + size]))
        changed = content[:start] + zeros + content[start + size :]
        path.write_bytes(changed)
        if changed == content:
            continue
        with pytest.raises(CacheError):
            FeatureCache.open(path)
    assert math.prod(features["shape"]) == ROWS * DIM


def test_what_follows_the_end_is_noticed(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(CacheError, match="changed since it was written"):
        FeatureCache.open(path)
