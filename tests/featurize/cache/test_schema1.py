"""Caches of version 0.1 open, and what HDF5 would do with forged ones stays in a process with limits."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.caches import as_schema1, write_made_up
from xfeat.featurize.cache.columns import Skipped
from xfeat.featurize.cache.reader import FeatureCache, stored_digest
from xfeat.featurize.cache.rows import read_rows
from xfeat.featurize.cache.writer import check_replaceable, write_cache
from xfeat.featurize.errors import CacheError

# Written by xfeat 0.1.0's own writer.
FIXTURE = Path(__file__).parent / "schema1.h5"
ROWS, DIM = 40, 4


def test_a_cache_that_0_1_wrote_opens_and_is_the_same_in_version_2(tmp_path: Path) -> None:
    cache = FeatureCache.open(FIXTURE)
    features = np.arange(24, dtype=np.float32).reshape(6, 4) / 8
    assert cache.schema_version == 1
    assert np.array_equal(cache.features, features)
    assert np.array_equal(read_rows(cache, np.array([1, 5])), features[[1, 5]])
    assert cache.columns.path[1:4] == ["normal/Käse 1.png", "covid/2.png", "normal/\udcff.png"]
    assert cache.columns.group == ["p1", "", "p1", "p2", "", ""]
    assert cache.columns.label.tolist() == [0, 1, 0, 1, -1, 1]
    assert cache.columns.truncated.tolist() == [False, False, False, True, False, False]
    assert (cache.skipped, cache.layout) == ([Skipped("covid/broken.png", "not an image")], "2 classes")
    write_cache(tmp_path / "c.h5", cache, blocks=[(0, features)], dim=4)
    again = FeatureCache.open(tmp_path / "c.h5")
    assert (again.schema_version, again.content_sha256) == (2, cache.content_sha256)
    assert all(np.array_equal(value, getattr(again.columns, name)) for name, value in vars(cache.columns).items())
    assert stored_digest(FIXTURE) == cache.content_sha256
    check_replaceable(FIXTURE)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    columns = {
        "label": np.arange(ROWS) % 2,
        "split": [0] * ROWS,
        "path": [f"covid/a name of some length {row}.png" for row in range(ROWS)],
        "group": [f"patient {row // 2}" for row in range(ROWS)],
    }
    return as_schema1(write_made_up(tmp_path / "c.h5", np.ones((ROWS, DIM), np.float32), columns, ["a", "b"]).path)


def remade(name: str, **options: Any) -> Callable[[h5py.File], None]:
    """Return what stores a dataset anew, with its values where no others are given."""

    def change(file: h5py.File) -> None:
        data = None if "shape" in options else options.pop("data", file[name][()])
        del file[name]
        file.create_dataset(name, data=data, **options)

    return change


def linked(name: str, link: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = link

    return change


def attribute(name: str, value: object) -> Callable[[h5py.File], None]:
    return lambda file: file.attrs.__setitem__(name, value)


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((ROWS, DIM), np.float32)
    layout[:] = h5py.VirtualSource("/etc/passwd", "features", (ROWS, DIM))
    del file["features"]
    file.create_virtual_dataset("features", layout)


def many_attributes(file: h5py.File) -> None:
    for number in range(3_000):
        file["features"].attrs[f"a{number}"] = number


BOMB = np.zeros((50_000, DIM), np.float32)
TEXT = h5py.string_dtype("utf-8")
FORGED: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "a trillion rows": (remade("features", shape=(10**12, DIM), dtype="f4"), "not stored as one block"),
    "a trillion labels": (remade("label", shape=(10**12,), dtype="i4"), "not stored as one block"),
    "chunks": (remade("features", chunks=(2, DIM)), "not stored as one block"),
    "chunks of 4 GB": (remade("features", shape=(2**30, 1), chunks=(2**29, 1), dtype="f4"), "not stored as one block"),
    "a bomb": (remade("features", data=BOMB, compression="gzip"), "not stored as one block"),
    "a bomb of text": (remade("path", data=["x" * 5_000] * ROWS, dtype=TEXT, compression="gzip"), "one block"),
    "storage in another file": (
        remade("features", shape=(ROWS, DIM), dtype="f4", external=[("/etc/passwd", 0, ROWS * DIM * 4)]),
        "not stored as one block",
    ),
    "text in another file": (
        remade("sha256", shape=(ROWS,), dtype="S64", external=[("/etc/passwd", 0, ROWS * 64)]),
        "not stored as one block",
    ),
    "a virtual dataset": (virtual, "not stored as one block"),
    "a link to another file": (linked("label", h5py.ExternalLink("/etc/passwd", "/label")), "only a link"),
    "a link to itself": (linked("label", h5py.SoftLink("/label")), "only a link"),
    "a link that leads in a circle": (linked("label", h5py.SoftLink("/label/label")), "only a link"),
    "a link to another dataset": (linked("size", h5py.SoftLink("/mtime_ns")), "only a link"),
    "big-endian features": (remade("features", dtype=">f4"), "another type"),
    "double features": (remade("features", dtype="f8"), "another type"),
    "compound features": (remade("features", data=np.zeros(ROWS, "f4,f4")), "another type"),
    "features of any length": (
        remade("features", shape=(ROWS,), dtype=h5py.vlen_dtype(np.float32)),
        "another type",
    ),
    "references": (remade("label", shape=(ROWS,), dtype=h5py.ref_dtype), "another type"),
    "features of no dimension": (remade("features", data=np.float32(1)), "shape"),
    "features of one dimension": (remade("features", data=np.ones(ROWS, "f4")), "shape"),
    "features of four dimensions": (remade("features", data=np.ones((ROWS, 1, 1, DIM), "f4")), "shape"),
    "no rows": (remade("features", data=np.ones((0, DIM), "f4")), "shape"),
    "features of nothing": (remade("features", data=h5py.Empty("f4")), "features"),
    "a column that is longer": (remade("label", data=np.zeros(ROWS + 1, "i4")), "differ in length"),
    "paths that are numbers": (remade("path", data=np.zeros(ROWS)), "another type"),
    "paths of fixed width": (remade("path", data=np.zeros(ROWS, "S8")), "another type"),
    "labels outside": (remade("label", data=np.full(ROWS, 2, "i4")), "a label is outside"),
    "a group in place of a dataset": (
        lambda file: (file.__delitem__("label"), file.create_group("label")),
        "another type",
    ),
    "no column": (lambda file: file.__delitem__("group"), "no group"),
    "a changed file state": (remade("size", data=np.zeros(ROWS, "i8")), "file records have changed"),
    "a changed feature": (lambda file: file["features"].__setitem__((3, 2), 2), "features or labels have changed"),
    "a changed label": (remade("label", data=np.zeros(ROWS, "i4")), "features or labels have changed"),
    "no settings": (lambda file: file.attrs.__delitem__("spec"), "spec is missing"),
    "settings that are a list": (attribute("spec", "[]"), "spec"),
    "settings in depth": (attribute("spec", "[" * 50_000), "nested"),
    "settings that are an array": (attribute("spec", np.zeros(6_000)), "spec is ndarray"),
    "a decoder that is unknown": (attribute("spec", '{"colour": 1}'), "colour"),
    "another version": (attribute("schema_version", 3), "version 3"),
    "version 2 without its block": (attribute("schema_version", 2), "another program has rewritten"),
    "a version in an array": (attribute("schema_version", [1, 1]), "schema version"),
    "a version as text": (attribute("schema_version", "1"), "schema version"),
    "another program": (attribute("format", "other"), "of another program"),
    "a format in an array": (attribute("format", ["xfeat.features"] * 5), "of another program"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("forge", "said"), FORGED.values(), ids=FORGED)
def test_a_forged_cache_is_one_error(path: Path, forge: Callable[[h5py.File], object], said: str) -> None:
    with h5py.File(path, "r+") as file:
        forge(file)
    with pytest.raises(CacheError, match=rf"(?s){said}.*fix") as problem:
        FeatureCache.open(path)
    assert problem.value.file == path


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.attrs.__delitem__("counts"),
        lambda file: file.attrs.__delitem__("columns_sha256"),
        lambda file: file.attrs.__delitem__("left_out"),
        lambda file: file.create_dataset("x" * 60_000, data=1),
        many_attributes,
        attribute("decoder_difference", "null"),
    ],
    ids=["no counts", "no digest of states", "nothing left out", "a long name", "many attributes", "decoder"],
)
def test_what_does_not_matter_is_ignored(path: Path, change: Callable[[h5py.File], object]) -> None:
    with h5py.File(path, "r+") as file:
        change(file)
    cache = FeatureCache.open(path)
    assert (len(cache), cache.columns.group[-1]) == (ROWS, f"patient {ROWS // 2 - 1}")


@pytest.mark.slow
def test_one_long_text_in_all_places_is_refused_by_its_memory(tmp_path: Path) -> None:
    """Its 40,000 places have 16 bytes each, and name the same megabyte: 40 GB."""
    count = 40_000
    columns = {"label": [0] * count, "split": [0] * count, "path": [f"{row}" for row in range(count)]}
    columns["group"] = ["x" * (1 << 20), *[""] * (count - 1)]
    made = write_made_up(
        tmp_path / "small.h5", np.ones((4, 1), np.float32), {k: v[:4] for k, v in columns.items()}, "a"
    )
    path = as_schema1(made.path)
    with h5py.File(path, "r+") as file:
        for name in sorted(set(file) - {"features", "skipped", "group"}):
            remade(name, data=np.resize(file[name][()], count), dtype=file[name].dtype)(file)
        remade("features", data=np.ones((count, 1), "f4"))(file)
        group = np.array([*columns["group"][:1], *["y"] * (count - 1)], TEXT)
        remade("group", data=group, dtype=TEXT)(file)
        offset = file["group"].id.get_offset()
    content = bytearray(path.read_bytes())
    content[offset : offset + 16 * count] = content[offset : offset + 16] * count
    path.write_bytes(content)
    with pytest.raises(CacheError, match=r"(?s)damaged.*(allocate|memory|crashed)"):
        FeatureCache.open(path)


@pytest.mark.slow
def test_zeros_at_every_place_end_soon_and_are_never_another_content(path: Path) -> None:
    """Zeros in the heap of the text make HDF5 loop for ever."""
    expected = FeatureCache.open(path)
    content = path.read_bytes()
    looped = 0
    for start in range(0, len(content), 2048):
        zeros = bytes(len(content[start : start + 8192]))
        path.write_bytes(content[:start] + zeros + content[start + 8192 :])
        started = time.monotonic()
        try:
            cache = FeatureCache.open(path)
        except CacheError as error:
            looped += "processor time" in str(error)
            assert time.monotonic() - started < 60
            continue
        assert cache.columns.path == expected.columns.path
        assert (cache.skipped, cache.spec) == (expected.skipped, expected.spec)
    assert looped


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.001, 0.5, 0.99])
def test_a_truncated_cache_is_refused(tmp_path: Path, share: float) -> None:
    content = FIXTURE.read_bytes()
    (tmp_path / "c.h5").write_bytes(content[: int(share * len(content))])
    with pytest.raises(CacheError, match=r"(?s)damaged|not a feature cache"):
        FeatureCache.open(tmp_path / "c.h5")
