"""xfeat audit as a user meets it: text, JSON, the page, exit codes."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner, Result

from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.cli import main


class Audited(NamedTuple):
    """A copy of a cache, and what the command said of it."""

    file: Path
    done: Result

    @property
    def facts(self) -> dict[str, Any]:
        facts = json.loads(self.file.with_suffix(".audit.json").read_text())
        assert isinstance(facts, dict)
        return facts


@pytest.fixture(scope="module")
def audit_copy(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Audited]:
    """Return a function that audits a copy of a cache."""

    def audit(cache: FeatureCache, *options: str) -> Audited:
        file = Path(shutil.copy(cache.path, tmp_path_factory.mktemp("audited") / "features.h5"))
        return Audited(file, run(file, *options))

    return audit


@pytest.fixture(scope="module")
def leaked(audit_copy: Callable[..., Audited], leaky: FeatureCache) -> Audited:
    """The audit of leaks, without options."""
    return audit_copy(leaky)


@pytest.fixture(scope="module")
def gated(audit_copy: Callable[..., Audited], leaky: FeatureCache) -> Audited:
    """The audit of leaks as a gate of a program."""
    return audit_copy(leaky, "--strict", "--json")


@pytest.fixture(scope="module")
def passed(audit_copy: Callable[..., Audited], clean: FeatureCache) -> Audited:
    """The audit of what has no leaks as a gate of a program."""
    return audit_copy(clean, "--strict", "--json")


@pytest.fixture
def clean_file(clean: FeatureCache, tmp_path: Path) -> Path:
    return Path(shutil.copy(clean.path, tmp_path / "features.h5"))


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["audit", *map(str, arguments)])


class Page(HTMLParser):
    """Collects what a browser would load, the pictures, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.pictures: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "action", "poster"):
                self.loads.append(value or "")
        if tag == "img":
            self.pictures.append(dict(attrs)["src"] or "")


def test_a_leak_is_named_first_with_its_files_and_what_to_do(leaked: Audited) -> None:
    done = leaked.done
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[1:3] == [
        "leakage:   FOUND: metrics on this data are optimistically biased",
        "shortcuts: FOUND: the label can be predicted without looking at the anatomy",
    ]
    assert "test/clear/copy.png = train/clear/000.png (the same file)" in done.stdout
    assert "fix: keep one copy of each" in done.stdout
    assert done.stdout.index("FAILURE") < done.stdout.index("WARNING")


def test_strict_exits_with_1_only_when_the_gate_fails(gated: Audited, leaked: Audited, passed: Audited) -> None:
    assert gated.done.exit_code == 1
    assert gated.done.stderr.count("error:") == 1
    assert "the same file" in gated.done.stderr
    assert gated.file.with_suffix(".audit.json").is_file()
    assert leaked.done.exit_code == passed.done.exit_code == 0


def test_json_is_one_object_on_stdout_and_the_same_in_the_file(gated: Audited) -> None:
    assert json.loads(gated.done.stdout) == gated.facts


def test_the_facts_have_their_schema(leaked: Audited, leaky: FeatureCache) -> None:
    facts = leaked.facts
    assert facts["format"] == "xfeat.audit"
    assert facts["schema_version"] == 1
    assert facts["cache_sha256"] == leaky.content_sha256
    assert facts["passed"] is False
    assert facts["verdicts"] == {"leakage": "found", "shortcuts": "found"}
    assert facts["images"] == facts["images_read"] == len(leaky)
    assert all(isinstance(text, str) for text in facts["failures"] + facts["warnings"])
    assert [one["title"] for one in facts["findings"] if one["severity"] == "failure"] == facts["failures"]
    assert [one["title"] for one in facts["findings"] if one["severity"] == "warning"] == facts["warnings"]
    for one in facts["findings"]:
        assert set(one) == {"kind", "severity", "title", "meaning", "mend", "pairs", "images", "lines"}
        for pair in one["pairs"]:
            assert set(pair) == {"paths", "splits", "labels", "how", "pixels", "features"}
            assert set(pair["paths"]) <= set(leaky.columns.path)
    assert {probe["name"] for probe in facts["shortcuts"]} == {
        "features",
        "border",
        "centre-blacked-out",
        "file",
        "grey-levels",
    }
    assert all(0 <= probe["best_auc"] <= 1 and probe["chance_auc"] == 0.5 for probe in facts["shortcuts"])


def test_a_passed_audit_says_so(passed: Audited) -> None:
    facts = json.loads(passed.done.stdout)
    assert facts["passed"] is True
    assert facts["failures"] == []


def test_the_page_holds_all_its_pictures_and_loads_nothing(leaked: Audited) -> None:
    text = leaked.file.with_suffix(".audit.html").read_text(encoding="utf-8")
    page = Page(text)
    assert all(load.startswith(("data:image/jpeg;base64,", "#")) for load in page.loads)
    assert not re.search(r"https?://|url\(|@import|<script src|<link|\bfetch\(|XMLHttpRequest|import\(", text)
    # Five pairs, three views of the probes' example, two class averages; suspects and outliers come on top.
    assert len(page.pictures) >= 2 * 5 + 3 + 2


def test_missing_images_are_marked(tmp_path: Path, drawing: SimpleNamespace) -> None:
    drawn = drawing.DrawnSet(tmp_path / "data")
    drawing.fill(drawn, each=8)
    drawn.add("test/clear/copy.png", drawing.encode(drawing.draw(0), "PNG"), label=0, split=2, group="c")
    drawn.cache(tmp_path / "features.h5")
    (tmp_path / "data" / "test/clear/copy.png").unlink()
    done = run(tmp_path / "features.h5")
    assert done.exit_code == 0, done.output
    text = (tmp_path / "features.audit.html").read_text()
    assert "file missing" in text
    assert 'alt="test/clear/copy.png"' not in text
    assert 'alt="train/clear/000.png"' in text
    assert "1 of 17 images not in" in done.stdout


def test_names_cannot_smuggle_markup_into_the_page(tmp_path: Path, drawing: SimpleNamespace) -> None:
    drawn = drawing.DrawnSet(tmp_path / "data", class_names=("<b>bold", "disc"))
    drawing.fill(drawn, each=6)
    drawn.add("test/x<script>alert(1)<!--.png", drawing.encode(drawing.draw(0), "PNG"), label=0, split=2)
    drawn.cache(tmp_path / "features.h5")
    assert run(tmp_path / "features.h5").exit_code == 0
    text = (tmp_path / "features.audit.html").read_text()
    assert Page(text).tags.count("script") == 2  # the page's own
    assert "&lt;script&gt;" in text
    assert "<b>bold" not in text


def test_a_file_name_that_is_no_utf8_does_not_stop_the_audit(tmp_path: Path, drawing: SimpleNamespace) -> None:
    drawn = drawing.DrawnSet(tmp_path / "data")
    drawing.fill(drawn, each=6)
    drawn.add("test/clear/caf\udce9.png", drawing.encode(drawing.draw(0), "PNG"), label=0, split=2, group="\udce9")
    drawn.cache(tmp_path / "features.h5")
    done = run(tmp_path / "features.h5", "--json")
    assert done.exit_code == 0, done.output
    assert "caf�.png" in (tmp_path / "features.audit.html").read_text()


def test_output_names_the_page_and_the_facts_stay_beside_the_cache(clean_file: Path, tmp_path: Path) -> None:
    done = run(clean_file, "-o", tmp_path / "pages" / "a.html")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "pages" / "a.html").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features.audit.json", "features.h5", "pages"]


def test_without_its_libraries_the_audit_says_so_before_it_reads(
    clean_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "cleanlab" else real(name))
    done = run(clean_file)
    assert done.exit_code == 1
    assert done.stderr.startswith("error: the audit needs cleanlab\n")
    assert "pip install 'xfeat-onnx[train]'" in done.stderr


def test_a_missing_cache_is_one_message(tmp_path: Path) -> None:
    done = run(tmp_path / "none.h5")
    assert done.exit_code == 1
    assert done.stderr.startswith("error: ")
    assert "xfeat featurize" in done.stderr


def test_head_believes_the_facts(passed: Audited) -> None:
    """The training room reads this file: what it makes of it is the contract between the two."""
    audited = pytest.importorskip("xfeat.featurize.audit.stored")
    seen = audited.audit_of(FeatureCache.open(passed.file))
    assert seen["audited"] is True
    assert seen["passed"] is True
