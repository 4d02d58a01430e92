"""``xhead compare``."""

from __future__ import annotations

from pathlib import Path

import click

import xfeat
from xfeat.featurize.console import PATH, Printed, json_option
from xfeat.head.cli.options import runs_option
from xfeat.head.specs import SORTS


@click.command()
@click.argument("folders", metavar="[RUNS]...", nargs=-1, type=PATH)
@runs_option
@click.option("--sort", type=click.Choice(SORTS), default=SORTS[0], help="The best comes first.")
@click.option(
    "--baselines",
    is_flag=True,
    help="Also fit scikit-learn baselines with tuned settings (logistic regression and SVM) to the first run's data.",
)
@click.option(
    "--features",
    type=PATH,
    help="Cache that runs were trained on.  [default: that of each run, also if the project has moved]",
)
@click.option("--csv", "csv_file", type=PATH, help="Write the table to this file.")
@click.option("--html", "html_file", type=PATH, help="Write an HTML page with training curves.")
@json_option
def compare(
    folders: tuple[Path, ...],
    runs: Path,
    sort: str,
    baselines: bool,
    features: Path | None,
    csv_file: Path | None,
    html_file: Path | None,
) -> Printed:
    """Compare runs: their settings, their metrics, and whether a difference is larger than chance.

    RUNS are folders of runs, cross-validations and external tests (xhead eval), or names in --runs; by default all of
    them. Each run is compared with the first by McNemar's exact test on the images that both were tested on, and by a
    bootstrap over patients if patients have several images. Runs without predictions come last and are not compared.
    Cross-validations and external tests follow, each compared with the best of its kind on the same images.
    """
    done = xfeat.compare(
        *(folders, runs), sort=sort, baselines=baselines, features=features, csv_file=csv_file, html_file=html_file
    )
    from xfeat.head.compare.table import as_json, comparison_lines

    return as_json(done), comparison_lines(done)
