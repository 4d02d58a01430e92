"""Shards and the index over them: what a stopped run left is found again."""

from __future__ import annotations

from pathlib import Path

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


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_a_damaged_shard_is_deleted_and_the_others_stay(tmp_path: Path, damage: str) -> None:
    filled(tmp_path, 2, 2, 2)
    victim = sorted(tmp_path.glob("*.npz"))[1]
    content = bytearray(victim.read_bytes())
    if damage == "cut":
        del content[len(content) // 2 :]
    elif damage == "flip":
        content[content.index(np.float32(2).tobytes() * 4)] ^= 1
    elif damage == "empty":
        content.clear()
    else:
        content[:] = b"PK something else"
    victim.write_bytes(content)
    assert [shard.rows for shard, _, _ in ShardStore(tmp_path, PRINT, ROOT).load()] == [2, 2]
    assert not victim.exists()


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


def test_a_shard_that_does_not_name_its_data_root_is_deleted(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    (file,) = tmp_path.glob("*.npz")
    with np.load(file) as content:
        kept = {name: content[name] for name in content.files if name != "data_root"}
    np.savez(file, **kept)
    assert list(ShardStore(tmp_path, PRINT, ROOT).load()) == []


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
