"""Shards and the index over them: what a stopped run left is found again."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xfeat.featurize.cache.index import NOT_STORED, FeatureIndex
from xfeat.featurize.cache.shards import IDENTITY, FileIdentity, Row, ShardStore

PRINT = "0123456789abcdef"
ROOT = "/data"


def row(number: int, shape: tuple[int, ...] = (4,)) -> Row:
    identity = FileIdentity(number, number + 1, number + 2, f"{number:064x}", number % 2 == 1)
    return Row(f"x/{number}.png", identity, np.full(shape, number, np.float32))


def filled(folder: Path, *counts: int) -> ShardStore:
    store = ShardStore(folder, PRINT, ROOT)
    number = 0
    for count in counts:
        store.append([row(number + index) for index in range(count)])
        number += count
    return store


def test_shards_come_back_as_they_were(tmp_path: Path) -> None:
    filled(tmp_path / "parts", 3, 2)
    found = list(ShardStore(tmp_path / "parts", PRINT, ROOT).load())
    assert [shard.rows for shard, _, _ in found] == [3, 2]
    assert [path for _, paths, _ in found for path in paths] == [f"x/{number}.png" for number in range(5)]
    sizes = np.concatenate([identities["size"] for _, _, identities in found])
    assert sizes.tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(np.concatenate([shard.features() for shard, _, _ in found])[:, 0], np.arange(5))


def test_a_resumed_store_does_not_write_over_what_is_there(tmp_path: Path) -> None:
    filled(tmp_path / "parts", 2, 2)
    store = ShardStore(tmp_path / "parts", PRINT, ROOT)
    list(store.load())
    store.append([row(9)])
    assert [shard.rows for shard, _, _ in ShardStore(tmp_path / "parts", PRINT, ROOT).load()] == [2, 2, 1]


def _flipped(content: bytes) -> bytes:
    at = content.index(np.float32(2).tobytes() * 4)
    return content[:at] + b"\1" + content[at + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[: len(content) // 2],
    "flipped": _flipped,
    "empty": lambda _: b"",
    "of another kind": lambda _: b"PK something else",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_shard_is_deleted_and_the_others_stay(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    filled(tmp_path, 2, 2, 2)
    victim = sorted(tmp_path.glob("*.npz"))[1]
    victim.write_bytes(damage(victim.read_bytes()))
    assert [shard.rows for shard, _, _ in ShardStore(tmp_path, PRINT, ROOT).load()] == [2, 2]
    assert not victim.exists()


def claimed(rows: int) -> bytes:
    """Return an array whose header says that it has more rows than there are."""
    np.lib.format.write_array_header_1_0(
        stream := io.BytesIO(), {"descr": "<f4", "fortran_order": False, "shape": (rows, 4)}
    )
    return stream.getvalue() + bytes(32)


FORGED: dict[str, dict[str, Any]] = {
    "a column that is missing": {"size": None},
    "a column that is shorter": {"size": np.zeros(1, np.int64)},
    "a column of another type": {"size": np.zeros(2)},
    "times that are text": {"mtime_ns": np.array(["1", "2"])},
    "digests that are no digests": {"sha256": np.array([b"x" * 64] * 2)},
    "digests that are short": {"sha256": np.array([b"ab"] * 2, "S64")},
    "fewer paths": {"paths": np.array([b"a"])},
    "paths that are numbers": {"paths": np.arange(2)},
    "features without columns": {"features": np.zeros(2, np.float32)},
    "features of no dimension": {"features": np.float32(1)},
    "features of another width": {"features": np.zeros((2, 5), np.float32)},
    "Python objects": {"paths": np.array([{}, {}])},
    "no data root": {"data_root": None},
}


@pytest.mark.parametrize("changes", FORGED.values(), ids=FORGED)
def test_a_forged_shard_is_deleted(tmp_path: Path, changes: dict[str, Any]) -> None:
    filled(tmp_path, 2, 2)
    victim = sorted(tmp_path.glob("*.npz"))[1]
    with np.load(victim) as content:
        values = {name: value for name, value in {**content, **changes}.items() if value is not None}
    np.savez(victim, **values)
    assert [shard.rows for shard, _, _ in ShardStore(tmp_path, PRINT, ROOT).load()] == [2]
    assert not victim.exists()


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("rows", [10**6, 10**12, 10**18])
def test_a_shard_that_claims_more_than_it_has_is_deleted(tmp_path: Path, kind: int, rows: int) -> None:
    filled(tmp_path, 2)
    (victim,) = tmp_path.glob("*.npz")
    with zipfile.ZipFile(victim) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(victim, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(name, claimed(rows) if name == "features.npy" else content)
    assert list(ShardStore(tmp_path, PRINT, ROOT).load()) == []


def test_files_of_others_among_the_shards_do_not_stop_a_run(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    shutil.copy(tmp_path / f"{PRINT}-00000000.npz", tmp_path / f"{PRINT}-00000000 (copy).npz")
    shutil.copy(tmp_path / f"{PRINT}-00000000.npz", tmp_path / f"{PRINT}-.npz")
    (tmp_path / f"{PRINT}-00000007.npz").mkdir()
    (tmp_path / "notes.txt").touch()
    assert [shard.rows for shard, _, _ in ShardStore(tmp_path, PRINT, ROOT).load()] == [2]


def test_shards_of_another_spec_are_deleted(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    assert list(ShardStore(tmp_path, "f" * 16, ROOT).load()) == []
    assert list(tmp_path.iterdir()) == []


def test_times_count_only_below_the_same_data_root(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    times = {}
    for root in (ROOT, "/elsewhere"):
        ((_, _, identities),) = ShardStore(tmp_path, PRINT, root).load()
        times[root] = identities["mtime_ns"].tolist()
        assert identities["size"].tolist() == [0, 1]
    assert times == {ROOT: [1, 2], "/elsewhere": [0, 0]}


def test_a_shard_of_an_earlier_version_has_no_marks_of_change_and_stays(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    (file,) = tmp_path.glob("*.npz")
    with np.load(file) as content:
        kept = {name: content[name] for name in content.files if name != "change_mark"}
    np.savez(file, **kept)
    ((_, _, identities),) = ShardStore(tmp_path, PRINT, ROOT).load()
    assert (identities["mtime_ns"].tolist(), identities["change_mark"].tolist()) == ([1, 2], [0, 0])


def test_nothing_to_load_is_no_problem(tmp_path: Path) -> None:
    store = ShardStore(tmp_path / "absent", PRINT, ROOT)
    assert list(store.load()) == []
    store.delete()


@settings(max_examples=50, deadline=None)
@given(counts=st.lists(st.integers(1, 5), min_size=1, max_size=4), data=st.data())
def test_features_are_gathered_in_the_order_asked_for(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], data: st.DataObject
) -> None:
    store = filled(tmp_path_factory.mktemp("parts"), *counts)
    known = FeatureIndex()
    for shard, paths, identities in ShardStore(store.folder, PRINT, ROOT).load():
        known.add_shard(shard, identities, paths)
    total = sum(counts)
    wanted = data.draw(st.lists(st.integers(0, total - 1), min_size=1, max_size=20))
    by_content = np.array([known.find_content(f"{number:064x}") for number in wanted])
    assert known.gather(by_content)[:, 0].tolist() == wanted
    paths = [f"x/{number}.png" for number in dict.fromkeys(wanted)]
    states = np.zeros(len(paths) + 1, IDENTITY)
    places = known.find_paths([*paths, "unknown.png"], states)
    assert known.gather(places[:-1])[:, 0].tolist() == list(dict.fromkeys(wanted))
    assert places[-1] == NOT_STORED
    assert states["size"][:-1].tolist() == list(dict.fromkeys(wanted))
    assert known.find_content("f" * 64) == NOT_STORED


def test_rows_with_views_are_gathered_too(tmp_path: Path) -> None:
    store = ShardStore(tmp_path, PRINT, ROOT)
    known = FeatureIndex()
    known.add_shard(*store.append([row(number, (3, 4)) for number in range(4)]))
    assert known.gather(np.array([2, 0])).shape == (2, 3, 4)
