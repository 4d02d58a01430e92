"""The pages: links, files, names and messages exist, decisions say when and whether they hold, and the site builds."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
AT_THE_TOP = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "data/README.md"]
PAGES = [*(ROOT / name for name in AT_THE_TOP), *sorted(DOCS.rglob("*.md"))]
RECORDS = sorted((DOCS / "decisions").glob("0*.md"))
PACKAGES = ("featurize", "head", "export", "serve")
# What changed and what is superseded may name files that are gone.
HISTORY = {ROOT / "CHANGELOG.md", *(record for record in RECORDS if "Status: superseded" in record.read_text())}
CURRENT = [page for page in PAGES if page not in HISTORY]
FILES = re.compile(r"(?<![\w/.*-])(?:featurize|head|export|serve|tests|benchmarks|deploy)/[\w./-]*\w")
NAMES = re.compile(rf"\bxfeat\.(?:{'|'.join(PACKAGES)})\b(?:\.\w+)*")
STATUS = re.compile(r"^Date: (\d{4}-\d{2}-\d{2}) · Status: (accepted|superseded by .+|partly superseded by .+)$")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """Return a page without its code blocks and spans, in which brackets are no links."""
    text = re.sub(r"^( *)```.*?^ *```", "", page.read_text(), flags=re.S | re.M)
    return re.sub(r"`[^`]*`", "", text)


def anchors(page: Path) -> set[str]:
    """Return the names of a page's headings, as code hosts and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def code_of(page: Path) -> list[str]:
    """Return the code spans of a page, and the lines of its code blocks."""
    text = page.read_text()
    blocks = [
        *re.findall(r"^ *```[^\n]*\n(.*?)^ *```", text, flags=re.S | re.M),
        *re.findall(r"^    .+$", text, flags=re.M),
    ]
    return [*re.findall(r"`([^`\n]+)`", text), *(line for block in blocks for line in block.splitlines())]


def is_file_or_module(path: str) -> bool:
    return (ROOT / path).exists() or (ROOT / f"{path}.py").exists()


def can_be_imported(name: str) -> bool:
    """Return whether a dotted name is a module, or something in one."""
    module, _, rest = name.partition(".")
    found: object = importlib.import_module(module)
    for part in rest.split("."):
        module = f"{module}.{part}"
        try:
            found = getattr(found, part) if hasattr(found, part) else importlib.import_module(module)
        except ImportError:
            return False
    return True


def links(page: Path) -> list[str]:
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [target for target in found if not target.startswith(("http:", "https:", "mailto:"))]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("page", [page for page in PAGES if DOCS in page.parents], ids=name_of)
def test_pages_of_the_site_link_to_the_site_alone(page: Path) -> None:
    """A link out of docs/ works on a code host and is dead on the site."""
    for link in links(page):
        target = (page.parent / link.partition("#")[0]).resolve()
        assert target.is_relative_to(DOCS), link


def test_every_page_can_be_reached_from_the_index() -> None:
    """Both ways: links lead to pages, and pages are linked to."""
    waiting, seen = [DOCS / "index.md"], set()
    while waiting:
        page = waiting.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        waiting += [(page.parent / link.partition("#")[0]).resolve() for link in links(page) if link[0] != "#"]
    assert set(DOCS.rglob("*.md")) - seen == set()


@pytest.mark.parametrize("page", CURRENT, ids=name_of)
def test_files_that_a_page_names_exist(page: Path) -> None:
    """Modules may be named without their suffix."""
    named = [path for line in code_of(page) for path in FILES.findall(line)]
    assert [path for path in named if not is_file_or_module(path)] == []


def test_the_architecture_names_modules_by_room_and_name() -> None:
    """Its paths of an image, a weight and a request leave the package out: ``images/decode``."""
    blocks = re.findall(r"```text\n(.*?)```", (DOCS / "architecture.md").read_text(), flags=re.S)
    named = {path for block in blocks for path in re.findall(r"(?<![\w/])[a-z_]+/[a-z_]+\b(?!/)", block)}
    assert len(named) > 20
    places = ("", *(f"{package}/" for package in PACKAGES))
    assert [path for path in sorted(named) if not any(is_file_or_module(place + path) for place in places)] == []


@pytest.mark.parametrize("page", CURRENT, ids=name_of)
def test_python_names_on_a_page_exist(page: Path) -> None:
    named = {name for line in code_of(page) for name in NAMES.findall(line)}
    assert [name for name in sorted(named) if not can_be_imported(name)] == []


def test_messages_of_the_common_errors_are_those_of_the_code() -> None:
    """Each part between dots is in a string of the code, or contains one (the rest of it is filled in)."""
    table = (DOCS / "practice.md").read_text().partition("## Common errors")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.+?) \|", table, flags=re.M)
    quoted = [part.strip() for row in rows for text in re.findall(r"`([^`]+)`", row) for part in text.split("…")]
    assert len(quoted) > 8
    strings = {
        node.value.strip()
        for package in PACKAGES
        for module in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    long = [text for text in strings if len(text) > len("there is no")]
    assert [part for part in quoted if part and not any(part in text or text in part for text in long)] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_placeholder_is_left(page: Path) -> None:
    assert "@@" not in page.read_text()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_page_installs_the_package_of_others(page: Path) -> None:
    """The name ``xfeat`` belongs to another project on PyPI."""
    assert not re.search(r"pip install [^\n`#]*\bxfeat(?!-onnx)\b", page.read_text())


@pytest.mark.parametrize("record", RECORDS, ids=name_of)
def test_a_record_has_a_date_and_a_status(record: Path) -> None:
    title, blank, line, after, *_ = record.read_text().splitlines()
    assert title.startswith("# ")
    assert (blank, after) == ("", "")
    found = STATUS.match(line)
    assert found, line
    if found[2] != "accepted":
        successors = re.findall(r"\]\((\d{4}-[^)]+\.md)\)", line)
        assert successors, "a superseded record names its successor"
        for successor in successors:
            assert (record.parent / successor).is_file(), successor
            assert successor != record.name


def test_the_index_lists_every_record_with_its_status() -> None:
    index = (DOCS / "decisions" / "README.md").read_text()
    rows = re.findall(r"^\| \[(\d{4})\]\(([^)]+)\) \| (.+?) \| (\S+) \| (.+?) \|$", index, flags=re.M)
    assert [row[1] for row in rows] == [record.name for record in RECORDS]
    for (number, name, title, date, status), record in zip(rows, RECORDS, strict=True):
        lines = record.read_text().splitlines()
        assert name.startswith(number)
        assert title == lines[0].removeprefix("# ")
        found = STATUS.match(lines[2])
        assert found
        assert date == found[1]
        word = found[2].partition(" by")[0]
        assert status.startswith(word), f"{name}: {status}"


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path: Path) -> None:
    if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("material") is None:
        pytest.skip("mkdocs-material is not installed: pip install '.[dev]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "index.html").is_file()
    pages = [page.read_text() for page in tmp_path.rglob("*.html")]
    foreign = [
        url for page in pages for url in re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)', page)
    ]
    assert foreign == [], "the site loads nothing from elsewhere"
