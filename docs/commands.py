"""Write docs/commands.md: the help of every command, as the programs print it. ``make docs`` runs this."""

from __future__ import annotations

import importlib
from pathlib import Path

import click

PROGRAMS = {
    "xfeat": "xfeat.featurize.cli",
    "xhead": "xfeat.head.cli",
    "xexport": "xfeat.export.cli",
    "xserve": "xfeat.serve.cli",
}
PAGE = Path(__file__).with_name("commands.md")
WIDTH = 110
INTRODUCTION = """# All commands

This page is written by `make docs` from the programs' own `--help`.

Results go to stdout, progress and warnings to stderr. `--json` prints one JSON object on stdout and nothing else there.
Exit codes: 0 done, 1 a problem, named in one message, 2 wrong usage, 130 stopped by Ctrl-C or SIGTERM.
`xserve start` has no `--json`, and exits with 0 when it is stopped.
"""


def render() -> str:
    """Return the page."""
    sections = [INTRODUCTION]
    for program, module in PROGRAMS.items():
        group = importlib.import_module(module).main
        summary = " ".join((group.help or "").split())
        sections.append(f"## {program}\n\n{summary}\n")
        for name, command in sorted(group.commands.items()):
            context = click.Context(
                command,
                info_name=f"{program} {name}",
                terminal_width=WIDTH,
                max_content_width=WIDTH,
                **group.context_settings,
            )
            text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
            sections.append(f"### {program} {name}\n\n```text\n{text}\n```\n")
    return "\n".join(sections)


if __name__ == "__main__":
    PAGE.write_text(render())
