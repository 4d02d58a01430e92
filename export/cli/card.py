"""The command ``xexport card``."""

from __future__ import annotations

from pathlib import Path

import click

import xfeat
from xfeat.export.cli.options import model_argument
from xfeat.featurize.console import PATH, Printed, json_option


@click.command()
@model_argument
@click.option("-o", "--output", type=PATH, default="card", show_default=True, help="Folder to write.")
@click.option("--run", type=PATH, help="Run of MODEL.  [default: that of its name in runs/]")
@click.option(
    *("--eval", "evaluations"), type=PATH, multiple=True, help="Folder of xhead eval or xhead crossval; repeatable."
)
@click.option("--license", help="Licence of the model, such as apache-2.0.  [default: left open]")
@json_option
def card(model: Path, output: Path, run: Path | None, evaluations: tuple[Path, ...], license: str | None) -> Printed:
    """Write the card of MODEL: README.md for Hugging Face, card.html, card.json, checklists and an ML-BOM.

    Everything in it was measured, with the file and key that says so; the rest is marked "for you to fill in". The
    checklists are CLAIM 2024 and TRIPOD+AI. bom.cdx.json is a CycloneDX 1.6 bill of materials. Without a run, the card
    has what MODEL and its certificate know.
    """
    written = xfeat.write_card(model, output, run=run, evaluations=evaluations, license=license)
    return written.to_dict(), written.lines
