"""Addresses: what is stored and shown of them, and what opens them."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from xfeat.featurize.errors import DataError, MissingExtraError, SpecError, XfeatError
from xfeat.featurize.sources.opening import open_source
from xfeat.featurize.sources.remote import _state_of
from xfeat.featurize.system.stored_paths import absolute_form, stored_form
from xfeat.featurize.urls import Url, root_of

SAFE = {
    "s3://bucket/a/b": "s3://bucket/a/b",
    "s3://bucket/what?#.tar": "s3://bucket/what?#.tar",
    "S3://bucket/a/": "s3://bucket/a",
    "https://host/x.zip": "https://host/x.zip",
    "https://user:pw@host/x.zip": "https://host/x.zip",
    "https://token@host:8080/x.zip": "https://host:8080/x.zip",
    "https://host/x.zip?X-Amz-Signature=SECRET&b=1": "https://host/x.zip",
    "https://host/x.zip#SECRET": "https://host/x.zip",
    "https://user:p@w:d@host/x.zip?sig=SECRET": "https://host/x.zip",
    "sftp://user:pw@host/x": "sftp://host/x",
    "abfs://container@account.dfs.core.windows.net/x": "abfs://container@account.dfs.core.windows.net/x",
}


@pytest.mark.parametrize("text", SAFE)
def test_what_is_secret_is_neither_stored_nor_shown(text: str, tmp_path: Path) -> None:
    url = pickle.loads(pickle.dumps(root_of(text)))
    assert isinstance(url, Url)
    assert str(url) == f"{url.__fspath__()}" == SAFE[text]
    assert str(url / "a b.png") == f"{SAFE[text]}/a b.png"
    assert url.full.casefold() == text.rstrip("/").casefold()
    assert stored_form(url, tmp_path) == absolute_form(SAFE[text], tmp_path) == SAFE[text]
    problem = str(DataError(url.redacted(f"403 for {url.full}"), path=url, fix=f"{url}"))
    for secret in ("SECRET", "pw", "p@w", "token"):
        assert secret not in problem + repr(url)


def test_a_file_address_is_a_path() -> None:
    assert root_of("file:///tmp/a%20b") == Path("/tmp/a b")
    assert root_of("/tmp/a") == Path("/tmp/a")
    assert root_of("C:/x") == Path("C:/x")


@pytest.mark.parametrize("text", ["s3://key:secret@bucket/x", "zip://a.png::s3://bucket/x.zip", "gs://a:b@bucket"])
def test_addresses_that_cannot_be_meant_are_refused(text: str) -> None:
    with pytest.raises(SpecError) as refused:
        root_of(text)
    assert "secret" not in str(refused.value)


def test_an_unknown_kind_of_address_is_refused() -> None:
    with pytest.raises(DataError, match="an address of unknown kind"):
        list(open_source(Url("nothing-like-it://host/x")).names())


def test_a_library_that_is_missing_is_named() -> None:
    with pytest.raises(MissingExtraError, match="xfeat-onnx\\[remote\\]"):
        list(open_source(Url("oci://bucket/x")).names())


def test_memory_is_an_address_too() -> None:
    """Any file system of fsspec works: here one without ETags and folders."""
    import fsspec

    files = fsspec.filesystem("memory")
    files.pipe({"/d/a/1.png": b"1", "/d/b/2.png": b"22"})
    source = open_source(Url("memory://d"))
    assert sorted(source.names()) == ["a/1.png", "b/2.png"]
    assert source.read("b/2.png")[0] == b"22"
    assert source.head("b/2.png", 1) == b"2"
    assert source.state("b/2.png") == source.read("b/2.png")[1]
    with pytest.raises(XfeatError, match="nothing is there"):
        list(open_source(Url("memory://other")).names())


WEB = "Mon, 01 Jan 2024 00:00:00 GMT"
TOLD = {
    "an ETag": ({"size": 3, "ETag": '"a"'}, {"size": 3, "ETag": '"b"'}),
    "a time": ({"size": 3, "created": "2024-01-01T00:00:00+00:00"}, {"size": 3, "created": "2024-01-02T00:00:00"}),
    "a time of the web": ({"size": 3, "Last-Modified": WEB}, {"size": 4, "Last-Modified": WEB}),
    "seconds": ({"size": 3, "mtime": 1e9}, {"size": 3, "mtime": 1e9 + 1}),
    "an ETag beside a time": ({"size": 3, "etag": "a", "updated": 1.0}, {"size": 3, "etag": "b", "updated": 1.0}),
}


@pytest.mark.parametrize("kind", TOLD)
def test_a_changed_object_has_another_state(kind: str) -> None:
    before, after = map(_state_of, TOLD[kind])
    assert before is not None
    assert before == _state_of(TOLD[kind][0])
    assert before != after
    assert before.mtime_ns > 0, "a time of 0 is not relied on"


def test_an_object_of_which_only_the_size_is_told_has_no_state() -> None:
    assert _state_of({"size": 3, "name": "x"}) is None
