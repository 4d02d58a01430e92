"""``features.h5``: what goes in comes out, and what is not whole is refused with the way out."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.caches import edit_cache
from xfeat.featurize.cache.columns import CacheDescription, Columns, Skipped
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.cache.writer import check_replaceable, write_cache
from xfeat.featurize.errors import CacheError, MismatchError, OutputError
from xfeat.featurize.specs import FeatureSpec

SPEC = FeatureSpec(backbone="efficientnet-b0", weights_sha256="0" * 64)
# Names as file systems have them: no separator for texts, no lone surrogates but those of surrogateescape.
names = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1, max_size=20)


def columns_of(count: int, **changes: Any) -> Columns:
    values: dict[str, Any] = {
        "label": np.arange(count, dtype=np.int32) % 2,
        "split": np.zeros(count, np.uint8),
        "path": [f"covid/{index}.png" for index in range(count)],
        "group": [""] * count,
        "sha256": [f"{index:064x}" for index in range(count)],
        "size": np.arange(count, dtype=np.int64),
        "mtime_ns": np.arange(count, dtype=np.int64),
        "change_mark": np.arange(count, dtype=np.int64),
        "truncated": np.zeros(count, np.bool_),
    }
    return Columns(**{**values, **changes})


def write(path: Path, features: np.ndarray, spec: FeatureSpec = SPEC, **changes: Any) -> FeatureCache:
    blocks = changes.pop("blocks", [(first, features[first : first + 3]) for first in range(0, len(features), 3)])
    facts: dict[str, Any] = {"columns": columns_of(len(features)), "skipped": [], "data_root": "/data", **changes}
    made = CacheDescription(spec=spec, class_names=["covid", "normal"], weights_path="/w.pth", **facts)
    write_cache(path, made, blocks=blocks, dim=features.shape[-1])
    return FeatureCache.open(path)


def numbers(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_is_written_is_read(tmp_path: Path, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    many = lambda element: st.lists(element, min_size=count, max_size=count)  # noqa: E731
    columns = columns_of(
        count,
        path=data.draw(st.lists(names, min_size=count, max_size=count, unique=True)),
        group=data.draw(many(names | st.just(""))),
        label=np.array(data.draw(many(st.integers(-1, 1))), np.int32),
        split=np.array(data.draw(many(st.sampled_from([0, 1, 2, 255]))), np.uint8),
        truncated=np.array(data.draw(many(st.booleans()))),
    )
    skipped = [Skipped(path, reason) for path, reason in data.draw(st.lists(st.tuples(names, names), max_size=3))]
    spec = dataclasses.replace(SPEC, dtype=data.draw(st.sampled_from(["float32", "float16"])))
    features = numbers(count, 5, dtype=spec.dtype)
    cache = write(tmp_path / "c.h5", features, spec, columns=columns, skipped=skipped)
    assert np.array_equal(cache.features, features)
    assert cache.features.dtype == spec.dtype
    assert cache.spec == spec
    assert cache.skipped == skipped
    for field in dataclasses.fields(Columns):
        assert list(getattr(cache.columns, field.name)) == list(getattr(columns, field.name)), field.name
    cache.verify()


def test_names_that_are_not_utf8_come_back_as_they_were(tmp_path: Path) -> None:
    path = b"covid/\xff\xfe.png".decode("utf-8", "surrogateescape")
    cache = write(tmp_path / "c.h5", numbers(1, 4), columns=columns_of(1, path=[path]), skipped=[Skipped(path, "x")])
    assert list(cache.columns.path) == [path]
    assert cache.skipped == [Skipped(path, "x")]
    cache.verify()


def test_a_data_folder_whose_name_is_not_utf8_is_kept(tmp_path: Path) -> None:
    root = b"/data/\xff".decode("utf-8", "surrogateescape")
    assert write(tmp_path / "c.h5", numbers(1, 4), data_root=root).data_root == root


def test_features_are_mapped_read_only_and_contiguous(tmp_path: Path) -> None:
    cache = write(tmp_path / "c.h5", numbers(7, 4))
    assert isinstance(cache.features, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        cache.features[0, 0] = 1
    with h5py.File(cache.path) as file:
        assert file["features"].chunks is None


def test_a_cache_of_files_decoded_on_a_gpu_is_refused_with_the_command_that_replaces_it(tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    write(path, numbers(3, 4), data_root="/my data")
    edit_cache(path, spec={**SPEC.to_dict(), "decoder": "nvjpeg"})
    command = f"xfeat featurize '/my data' --backbone efficientnet-b0 -o {path} --force"
    with pytest.raises(MismatchError, match=r"no GPU JPEG decoder") as caught:
        FeatureCache.open(path)
    assert (caught.value.file, caught.value.fix) == (path, command)
    check_replaceable(path)


def test_views_are_a_third_dimension(tmp_path: Path) -> None:
    features = numbers(5, 3, 4)
    cache = write(tmp_path / "c.h5", features, dataclasses.replace(SPEC, views=3))
    assert np.array_equal(cache.features, features)
    cache.verify()


def test_hdf5_tools_read_all_of_it(tmp_path: Path) -> None:
    """Text is UTF-8 of one width, skipped images are a table, and what is no array is JSON."""
    features, skipped = numbers(2, 4), [Skipped("ä.png", "not an image")]
    columns = columns_of(2, path=["Käse.png", "b.png"], group=["", "p"])
    cache = write(tmp_path / "c.h5", features, columns=columns, skipped=skipped)
    with h5py.File(cache.path) as file:
        assert np.array_equal(file["features"], features)
        assert file["path"].asstr()[:].tolist() == ["Käse.png", "b.png"]
        assert file["group"].asstr()[:].tolist() == ["", "p"]
        assert file["skipped"].dtype.names == ("path", "reason")
        assert [tuple(map(bytes.decode, row)) for row in file["skipped"][:]] == [tuple(image) for image in skipped]
        assert json.loads(file["header"][()])["class_names"] == ["covid", "normal"]
        assert all(file[name].chunks is None for name in ("features", "path", "skipped"))


def test_counts_are_by_split_and_class(tmp_path: Path) -> None:
    columns = columns_of(5, label=np.array([0, 1, 1, -1, 0], np.int32), split=np.array([0, 0, 0, 2, 255], np.uint8))
    cache = write(tmp_path / "c.h5", numbers(5, 4), columns=columns)
    assert cache.counts == {"train": {"covid": 1, "normal": 2}, "test": {"none": 1}, "none": {"covid": 1}}


def test_the_digest_covers_features_labels_splits_paths_and_groups(tmp_path: Path) -> None:
    features = numbers(4, 4)
    digests = {write(tmp_path / "c.h5", features).content_sha256}
    changes: list[dict[str, Any]] = [
        {"label": np.ones(4, np.int32)},
        {"split": np.ones(4, np.uint8)},
        {"path": ["a", "b", "c", "d"]},
        {"group": ["p", "", "", ""]},
    ]
    for change in changes:
        digests.add(write(tmp_path / "c.h5", features, columns=columns_of(4, **change)).content_sha256)
    digests.add(write(tmp_path / "c.h5", features + 1).content_sha256)
    assert len(digests) == 6
    same = write(tmp_path / "c.h5", features, columns=columns_of(4, mtime_ns=np.ones(4, np.int64)))
    assert same.content_sha256 in digests, "a file that was only touched is the same content"


# Damage


def test_verify_finds_a_flipped_bit(tmp_path: Path) -> None:
    cache = write(tmp_path / "c.h5", numbers(9, 4))
    offset = cache.features.offset
    content = bytearray(cache.path.read_bytes())
    content[offset + 8 * 16] ^= 1
    cache.path.write_bytes(content)
    with pytest.raises(CacheError, match=r"features or labels have changed(.|\n)*fix"):
        FeatureCache.open(cache.path).verify()


@pytest.mark.parametrize(
    ("name", "index", "value"),
    [
        ("sha256", 3, b"f" * 64),
        ("size", 3, 7777),
        ("mtime_ns", 3, 7777),
        ("change_mark", 3, 7777),
        ("truncated", 3, True),
        ("label", 3, 0),
        ("split", 3, 1),
        ("path", 3, 65),
        ("group", 3, 65),
        ("header", (), b"{}"),
    ],
)
def test_a_change_in_every_column_is_found_at_opening(tmp_path: Path, name: str, index: object, value: object) -> None:
    cache = write(tmp_path / "c.h5", numbers(9, 4))
    with h5py.File(cache.path, "a") as file:
        file[name][index] = value
    with pytest.raises(CacheError, match=r"changed since it was written(.|\n)*fix|damaged"):
        FeatureCache.open(cache.path, check=False)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 0.999))
def test_a_truncated_file_is_refused_at_every_length(tmp_path: Path, share: float) -> None:
    whole = tmp_path / "whole.h5"
    if not whole.exists():
        write(whole, numbers(50, 16))
    content = whole.read_bytes()
    cut = tmp_path / "cut.h5"
    cut.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CacheError) as caught:
        FeatureCache.open(cut).verify()
    assert caught.value.fix


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_refused_or_right_but_never_crashes(tmp_path: Path, data: st.DataObject) -> None:
    whole = tmp_path / "whole.h5"
    features = numbers(6, 4)
    if not whole.exists():
        write(whole, features)
    content = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = tmp_path / "damaged.h5"
    damaged.write_bytes(content)
    try:
        cache = FeatureCache.open(damaged)
        cache.verify()
    except CacheError:
        return
    assert np.array_equal(cache.features, features), "verified, and yet not what was written"


@pytest.mark.parametrize("content", [b"", b"not HDF5 at all", b"\x89HDF\r\n\x1a\n" + bytes(100)])
def test_a_file_that_is_not_a_cache_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.h5").write_bytes(content)
    with pytest.raises(CacheError, match=r"(.|\n)*fix"):
        FeatureCache.open(tmp_path / "c.h5")


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"feature cache not found(.|\n)*xfeat featurize DATA -o"):
        FeatureCache.open(tmp_path / "c.h5")
    with pytest.raises(CacheError, match=r"a folder, not a feature cache(.|\n)*xfeat featurize"):
        FeatureCache.open(tmp_path)


def test_hdf5_of_another_program_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["features"] = numbers(3, 4)
    with pytest.raises(CacheError, match="of another program"):
        FeatureCache.open(tmp_path / "c.h5")


# Writing


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    cache = write(tmp_path / "c.h5", numbers(3, 4))
    before = cache.path.read_bytes()

    def broken() -> Any:
        yield 0, numbers(1, 4)
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="the disk is full"):
        write(cache.path, numbers(3, 4), blocks=broken())
    assert cache.path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["c.h5"]


@pytest.mark.parametrize("firsts", [[0], [1, 0], [0, 3]])
def test_rows_that_are_missing_are_never_filled_up(tmp_path: Path, firsts: list[int]) -> None:
    with pytest.raises(RuntimeError, match="rows"):
        write(tmp_path / "c.h5", numbers(4, 4), blocks=[(first, numbers(2, 4)) for first in firsts])
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        write(tmp_path / "file" / "c.h5", numbers(1, 4))
    (tmp_path / "folder.h5").mkdir()
    with pytest.raises(OutputError, match="a folder of that name exists"):
        write(tmp_path / "folder.h5", numbers(1, 4))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.h5"]


def test_a_lock_of_another_program_is_no_obstacle(tmp_path: Path) -> None:
    """The lock is the one that h5py takes when a file is opened for writing. What it writes changes the digest."""
    cache = write(tmp_path / "a.h5", numbers(4, 3))
    with cache.path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        FeatureCache.open(cache.path)


@pytest.mark.parametrize(("number", "said"), [(errno.EACCES, "Permission denied"), (errno.EIO, "Input/output error")])
def test_the_fix_of_an_unreadable_cache_never_says_to_delete_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    cache = write(tmp_path / "a.h5", numbers(4, 3))

    def refuse(*_arguments: object, **_options: object) -> None:
        raise OSError(number, said)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CacheError, match=f"cannot be read: {said}") as problem:
        FeatureCache.open(cache.path)
    assert "delete" not in str(problem.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38, -1e30])
def test_a_value_whose_square_is_no_number_is_refused_at_opening(tmp_path: Path, value: float) -> None:
    features = numbers(9, 4)
    features[6, 1] = value
    with pytest.raises(CacheError, match=r"not finite, or above 1e\+14 \(1\): covid/6\.png"):
        write(tmp_path / "c.h5", features)


def test_a_changed_value_is_refused_at_opening(tmp_path: Path) -> None:
    cache = write(tmp_path / "c.h5", numbers(9, 4))
    with h5py.File(cache.path, "r+") as file:
        file["features"][2, 2] += 1
    with pytest.raises(CacheError, match="the features or labels have changed since it was written"):
        FeatureCache.open(cache.path)
    assert len(FeatureCache.open(cache.path, check=False)) == 9
