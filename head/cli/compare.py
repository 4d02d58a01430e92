"""``xhead compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from xfeat.featurize.console import PATH, Printed, json_option
from xfeat.head.cli.options import runs_option
from xfeat.head.reports.formatting import accuracy_line
from xfeat.head.specs import SORTS

if TYPE_CHECKING:
    from xfeat.head.compare.comparison import Entry
    from xfeat.head.runs.reader import Run


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

    RUNS are folders of runs and cross-validations, or names in --runs; by default all of them. Each run is compared
    with the first by McNemar's exact test on the images that both were tested on, and by a bootstrap over patients if
    patients have several images. Runs without predictions come last and are not compared. Cross-validations are listed
    below the table.
    """
    from xfeat.head.compare.comparison import as_entries, common_part, compare_entries, find_runs
    from xfeat.head.compare.table import as_csv, as_json, comparison_lines
    from xfeat.head.crossval.report import CROSSVAL_FILE
    from xfeat.head.crossval.stored import find_crossvals, open_crossval
    from xfeat.head.runs.reader import open_run

    named = [folder if folder.exists() or not (runs / folder).exists() else runs / folder for folder in folders]
    crossvals = [folder for folder in named if (folder / CROSSVAL_FILE).is_file()]
    found = [open_run(folder) for folder in named if folder not in crossvals] or find_runs(runs)
    validated = list(map(open_crossval, crossvals)) if named else find_crossvals(runs)
    if features is not None:
        from xfeat.head.runs.inputs import with_cache

        found = with_cache(found, features)
    entries, part = as_entries(found), common_part(found)
    if baselines:
        from xfeat.head.compare.baselines import fit_baselines

        entries += fit_baselines(_first_with_predictions(entries), part)
    comparison = compare_entries(entries, part, sort=sort)
    if csv_file is not None:
        _write(csv_file, as_csv(comparison), option="--csv")
    if html_file is not None:
        from xfeat.head.compare.page import render_comparison

        _write(html_file, render_comparison(comparison), option="--html")
    lines = [f"{each['name']}: {accuracy_line('cross-validated accuracy', each['accuracy'])}" for each in validated]
    return {**as_json(comparison), "crossvals": validated}, [*comparison_lines(comparison), *lines]


def _first_with_predictions(entries: list[Entry]) -> Run:
    from xfeat.featurize.errors import RunError

    for entry in entries:
        if entry.run is not None and not entry.problem:
            return entry.run
    raise RunError(
        "no run has readable predictions, which --baselines needs",
        expected="a predictions.csv in at least one run folder",
        fix="train a run again with xhead train",
    )


def _write(file: Path, text: str, *, option: str) -> None:
    from xfeat.featurize.system.atomic import replacing

    with replacing(file, elsewhere=f"choose another place with {option}") as partial:
        partial.write_text(text, encoding="utf-8", errors="surrogateescape")
