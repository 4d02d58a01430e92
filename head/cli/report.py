"""``xhead report``."""

from __future__ import annotations

from pathlib import Path

import click

import xfeat
from xfeat.featurize.console import PATH, Printed, json_option
from xfeat.head.specs import DEFAULT_RUNS


@click.command()
@click.argument("result", metavar="[FOLDER]", type=PATH, default=f"{DEFAULT_RUNS}/latest")
@click.option("--figures", type=PATH, default="figures", metavar="DIR", help="Folder to write to.")
@click.option("--features", type=PATH, help="Cache that the run was trained on, if it has moved.")
@json_option
def report(result: Path, figures: Path, features: Path | None) -> Printed:
    """Write the figures and the methods section of a paper.

    FOLDER is a run, a cross-validation or an external test (xhead eval); by default runs/latest. Written are ROC and
    precision-recall curve, calibration, decision curve, confusion matrix, and forest plots of subgroups and of the
    hospitals left out, each as SVG, PDF and PNG of one column (85 mm); methods.md with every setting and the captions;
    and figures.json, the list of them. What cannot be drawn is said. Files of these names in DIR are replaced.
    """
    done = xfeat.write_figures(result, figures, features=features)
    lines = [f"{each.name}: {', '.join(each.files)}" for each in done.figures]
    return done.to_dict(), [*lines, *done.notes, f"written to {done.folder}, with {done.methods} and figures.json"]
