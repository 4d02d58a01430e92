"""Rows copied from a cache: those of the mapped file, without its pages, and no crash when it is cut short."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.head.conftest import DIM, MakeCache
from xfeat.featurize.cache import feature_file
from xfeat.featurize.cache import rows as cache_rows
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.cache.rows import read_rows
from xfeat.featurize.errors import CacheError
from xfeat.head.data.pooling import pooled

ORDERS = {
    "neighbours": np.arange(10, 40),
    "near each other": np.array([0, 2, 3, 6, 9, 11]),
    "far apart": np.array([0, 50, 99]),
    "unordered": np.array([7, 3, 3, 99, 8, 9]),
    "none": np.arange(0),
}


def numbered(count: int, views: int | None = None) -> np.ndarray:
    """Features float16 that are all different."""
    shape = (count, *(() if views is None else (views,)), DIM)
    return (np.arange(np.prod(shape)) % 2000).reshape(shape).astype(np.float16)


@pytest.fixture(params=["read", "mapped"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to a row: from the file, and from its mapping as on Windows."""
    if request.param == "mapped":
        monkeypatch.delattr(os, "preadv")
    return str(request.param)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("views", [None, 3])
def test_rows_are_those_of_the_array_in_any_order(
    make_cache: MakeCache, way: str, order: str, views: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: numpy's own indexing of the features in memory."""
    monkeypatch.setattr(cache_rows, "ROWS_AT_ONCE", 16)
    monkeypatch.setattr(feature_file, "_MOST_AT_ONCE", 8)
    features, rows = numbered(100, views), ORDERS[order]
    cache = make_cache(sizes=(100,), features=features)
    np.testing.assert_array_equal(read_rows(cache, rows), features[rows])
    if views is not None:
        drawn = np.random.default_rng(0).integers(views, size=len(rows))
        np.testing.assert_array_equal(read_rows(cache, rows, views=drawn), features[rows, drawn])
        np.testing.assert_array_equal(read_rows(cache, rows, views=0), features[rows, 0])


def test_the_first_columns_of_a_wider_cache_are_read(make_cache: MakeCache, way: str) -> None:
    features = np.random.default_rng(0).normal(size=(20, 2024)).astype(np.float32)
    cache = make_cache(sizes=(20,), features=features, pooling="multilevel")
    rows = np.array([1, 2, 3, 17])
    np.testing.assert_array_equal(read_rows(pooled(cache, "final"), rows), features[rows, :1280])


def resident_kb(cache: FeatureCache) -> int:
    """Return the kernel's own count of the mapping's pages in memory."""
    smaps = Path("/proc/self/smaps")
    if not smaps.is_file():
        pytest.skip("/proc/self/smaps is a file of Linux")
    text = smaps.read_text().split(str(cache.path), 1)[1]
    return int(text.split("Rss:", 1)[1].split("kB", 1)[0])


def test_pages_of_the_mapping_take_no_memory(make_cache: MakeCache, way: str) -> None:
    cache = make_cache(sizes=(50_000,), features=np.ones((50_000, DIM), np.float16))
    read_rows(cache, np.arange(50_000))
    assert resident_kb(cache) == 0
    assert np.asarray(cache.features).max() == 1  # touches every page
    assert resident_kb(cache) > 1000


@pytest.mark.parametrize("change", ["replaced", "gone"])
def test_of_a_file_that_was_replaced_the_mapped_one_is_read(make_cache: MakeCache, change: str) -> None:
    features = numbered(60)
    before, during = (make_cache(name, sizes=(60,), features=features) for name in ("before.h5", "during.h5"))
    read_rows(during, np.arange(5))
    for cache in (before, during):
        if change == "replaced":
            make_cache("other.h5", sizes=(60,), features=-features).path.replace(cache.path)
        else:
            cache.path.unlink()
        np.testing.assert_array_equal(read_rows(cache, np.arange(60)), features)


CUT = """
import os, sys
import numpy as np
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.errors import CacheError
from xfeat.featurize.cache.rows import read_rows
cache = FeatureCache.open(sys.argv[1])
if sys.argv[2] == "during":
    read_rows(cache, np.arange(5))
os.truncate(cache.path, cache.features.offset + 100_000)
try:
    read_rows(cache, np.arange(len(cache)))
except CacheError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="there is no preadv here, and no way to cut a mapped file short")
@pytest.mark.parametrize("when", ["before", "during"])
def test_a_file_that_is_cut_short_is_an_error_and_no_crash(make_cache: MakeCache, when: str) -> None:
    """In a process of its own, which the mapping would have killed with SIGBUS."""
    cache = make_cache(sizes=(20_000,), features=np.ones((20_000, DIM), np.float32))
    done = subprocess.run(
        [sys.executable, "-c", CUT, str(cache.path), when], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert f"{cache.path}: the file was cut short while it was read" in done.stdout
    assert all(word in done.stdout for word in ("expected:", "found:", "fix:"))


def test_an_unreadable_disk_is_named(make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> int:
        raise OSError(5, "Input/output error")

    cache = make_cache()
    monkeypatch.setattr(os, "preadv", broken, raising=False)
    with pytest.raises(CacheError, match="Input/output error"):
        read_rows(cache, np.arange(5))
