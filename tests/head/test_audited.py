"""A cache that was not audited, or failed, is never used in silence."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from tests.head.conftest import MakeCache
from xfeat.featurize.audit.stored import audit_of, audit_path
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.head.specs import HeadSpec, TrainSpec
from xfeat.head.train import train_run


def write_audit(cache: FeatureCache, **changes: Any) -> None:
    report = {
        "format": "xfeat.audit",
        "schema_version": 1,
        "cache_sha256": cache.content_sha256,
        "passed": True,
        "failures": [],
        "warnings": ["12 images are blurred"],
        **changes,
    }
    audit_path(cache.path).write_text(json.dumps(report))


def test_the_audit_file_is_next_to_the_cache() -> None:
    assert audit_path(Path("a/features.h5")) == Path("a/features.audit.json")


def test_an_audit_that_passed_needs_no_warning(make_cache: MakeCache, caplog: pytest.LogCaptureFixture) -> None:
    cache = make_cache()
    write_audit(cache)
    found = audit_of(cache)
    assert (found["audited"], found["passed"], found["failures"]) == (True, True, [])
    assert not caplog.records


def test_a_failed_audit_is_a_warning_and_stays_in_run_and_report(
    make_cache: MakeCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = make_cache()
    write_audit(cache, passed=False, failures=["7 patients are in train and test"])
    with caplog.at_level(logging.WARNING):
        run = train_run(cache, HeadSpec(hidden=()), TrainSpec(epochs=1), runs=tmp_path / "runs")
    assert "7 patients are in train and test" in caplog.text
    assert run.audit["passed"] is False
    assert run.audit["failures"] == ["7 patients are in train and test"]
    page = (run.folder / "report.html").read_text()
    page = page.replace("\xa0", " ")
    assert page.index("7 patients are in train and test") < page.index("test accuracy")
    assert "12 images are blurred" in page


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cache_sha256": "0" * 64}, "other features"),
        ({"columns_sha256": "0" * 64}, "or columns"),
        ({"schema_version": 2}, "version 2"),
        ({"format": "something else"}, "something else"),
        ({"failures": None}, "cannot be read"),
    ],
)
def test_an_audit_of_another_cache_is_ignored(
    make_cache: MakeCache, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], words: str
) -> None:
    cache = make_cache()
    write_audit(cache, **changes)
    with caplog.at_level(logging.WARNING):
        found = audit_of(cache)
    assert (found["audited"], found["passed"]) == (False, None)
    assert words in caplog.text
    assert "xfeat audit" in caplog.text


def test_a_missing_or_damaged_audit_is_ignored(make_cache: MakeCache, caplog: pytest.LogCaptureFixture) -> None:
    cache = make_cache()
    with caplog.at_level(logging.WARNING):
        assert audit_of(cache)["audited"] is False
        audit_path(cache.path).write_text("{")
        assert audit_of(cache)["audited"] is False
    assert "has not been audited" in caplog.text
    assert "cannot be read" in caplog.text


@pytest.mark.parametrize(
    ("passed", "kinds", "probes", "verdicts"),
    [
        (True, [], ["features", "border"], ("none found", "none found")),
        (True, ["shortcut"], ["features", "border", "file"], ("none found", "found")),
        (True, ["columns.shortcut"], ["features"], ("none found", "found")),
        (True, ["columns.class"], [], ("none found", "found")),
        (True, ["shortcut.unmeasured"], [], ("none found", "not checked")),
        (True, ["files.gone"], ["features"], ("none found", "not checked")),
        (True, ["splits.none"], ["features", "border"], ("not checked", "none found")),
        (False, ["leakage.group", "shortcut"], ["features", "border"], ("found", "found")),
    ],
)
def test_an_audit_of_an_earlier_version_has_verdicts(
    make_cache: MakeCache, passed: bool, kinds: list[str], probes: list[str], verdicts: tuple[str, str]
) -> None:
    cache = make_cache()
    found = [{"kind": kind} for kind in kinds]
    write_audit(cache, passed=passed, findings=found, shortcuts=[{"name": name} for name in probes])
    assert tuple(audit_of(cache)["verdicts"].values()) == verdicts


def test_shortcuts_are_a_warning_and_stand_in_the_report(
    make_cache: MakeCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = make_cache()
    write_audit(cache, findings=[{"kind": "shortcut"}], shortcuts=[{"name": "file"}])
    with caplog.at_level(logging.WARNING):
        run = train_run(cache, HeadSpec(hidden=()), TrainSpec(epochs=1), runs=tmp_path / "runs")
    assert "found shortcuts" in caplog.text
    assert "leakage none found, shortcuts found" in (run.folder / "report.html").read_text()
