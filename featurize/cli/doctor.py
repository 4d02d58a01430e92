"""``xfeat doctor``: what this machine and this installation can do."""

from __future__ import annotations

import sys

import click

import xfeat
from xfeat.featurize.console import EXIT_PROBLEM, json_flag, print_result


@click.command()
@click.option("--connect", is_flag=True, help="Also try to reach the server that weights are downloaded from.")
@json_flag
def doctor(*, connect: bool, as_json: bool) -> None:
    """Show what works on this machine: GPU, driver, libraries, decoders, weights, folders; and what auto chooses.

    Everything is tried, not looked up: the GPU computes, sessions are opened, images decoded, files locked. Exit code 1
    if something that is installed does not work. What was not installed is a note.
    """
    topics = xfeat.doctor(connect=connect)
    from xfeat.featurize.doctor.report import as_json as report
    from xfeat.featurize.doctor.report import as_text, failures

    print_result(report(topics), as_text(topics), as_json=as_json)
    if failures(topics):
        sys.exit(EXIT_PROBLEM)
