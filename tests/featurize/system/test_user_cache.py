"""Where files that can be recreated are kept, also without a home folder and on a read-only disk."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from xfeat.featurize.system import user_cache
from xfeat.featurize.system.user_cache import cache_file, cache_folder

# Between tests, the folder of this process is given up; outside of tests it stays until the process ends.
pytestmark = pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")

UNWRITABLE = "/proc/xfeat"  # even for root


@pytest.fixture(autouse=True)
def only_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XFEAT_CACHE_DIR", raising=False)
    user_cache._process_cache.cache_clear()


def test_the_cache_is_below_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_file("a.onnx") == tmp_path / "xfeat" / "a.onnx"
    monkeypatch.setenv("XFEAT_CACHE_DIR", str(tmp_path / "own"))
    assert cache_file("a.onnx") == tmp_path / "own" / "a.onnx"


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("XFEAT_CACHE_DIR", UNWRITABLE, "/proc/xfeat cannot be written"),
        ("XDG_CACHE_HOME", UNWRITABLE, "/proc/xfeat/xfeat cannot be written"),
        ("XDG_CACHE_HOME", "/dev/null/cache", "/dev/null/cache/xfeat cannot be written"),
        ("XDG_CACHE_HOME", "~no-such-user/cache", "there is no home folder"),
        ("XDG_CACHE_HOME", "relative", "there is no home folder"),
    ],
)
def test_without_a_folder_files_are_temporary(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv(variable, value)
    with caplog.at_level(logging.WARNING):
        file = cache_file("a.onnx")
        assert cache_file("b.onnx").parent == file.parent
    assert [said in record.getMessage() for record in caplog.records] == [True]
    assert "set XFEAT_CACHE_DIR" in caplog.text
    file.write_text("writable")
    file.unlink()


def test_a_file_in_a_read_only_cache_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XFEAT_CACHE_DIR", "/proc/self")
    assert cache_file("status") == Path("/proc/self/status")


def test_without_a_home_folder_there_is_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "~no-such-user/cache")
    assert cache_folder() is None
