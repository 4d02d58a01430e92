"""What the README shows can be typed: its commands run, in its order, in an empty folder."""

from __future__ import annotations

import re
from pathlib import Path

from tests.readme import README, ROOT, said_in, shown_sessions


def shape(line: str) -> str:
    """Return a line with its figures and run names taken out: those differ between machines and days."""
    line = re.sub(r"\d{8}-\d{6}-[0-9a-f]{2}", "RUN", line)
    return re.sub(r"\s+", " ", re.sub(r"\d[\d.]*(e[-+]\d+)?", "#", line)).strip()


def test_the_commands_of_the_readme_run_and_say_what_it_shows(readme_run: Path) -> None:
    sessions, said = shown_sessions(), said_in(readme_run)
    assert {command.split()[0] for command in said} == {"xfeat", "xhead", "xexport", "xserve"}
    for command, shown in sessions:
        if command in said:
            assert [shape(line) for line in shown] == [shape(line) for line in said[command]], command
    assert {command for command, _ in sessions} - set(said) <= {"xserve start"}


def test_no_placeholder_is_left() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        assert "@@" not in page.read_text(), page


def test_the_file_tree_of_the_readme_is_there() -> None:
    tree = re.search(r"```text\n(featurize/.*?)```", README, flags=re.S)
    assert tree
    named = re.findall(r"^(\S+)", tree.group(1), flags=re.M)
    assert len(named) > 8
    for name in named:
        assert (ROOT / name).exists(), name


def test_links_of_the_documentation_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "data" / "README.md"]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if not target.startswith(("http:", "https:", "mailto:")):
                assert (page.parent / target).exists(), f"{page}: {target}"
