"""A whole comparison: runs and other results are found, compared, and written as a table and a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from xfeat.featurize.errors import RunError
from xfeat.featurize.system.atomic import replacing
from xfeat.head.compare.comparison import Comparison, Entry, as_entries, common_part, compare_entries, find_runs
from xfeat.head.compare.results import compared_results, find_results, is_result, open_result
from xfeat.head.compare.table import as_csv
from xfeat.head.runs.inputs import with_cache
from xfeat.head.runs.reader import Run, open_run, runs_in


def compare_runs(
    named: Sequence[Path | Run],
    folder: Path,
    *,
    sort: str,
    baselines: bool,
    features: Path | None,
    csv_file: Path | None,
    html_file: Path | None,
) -> Comparison:
    """Compare runs, cross-validations and external tests, each kind by itself; arguments as for :func:`xfeat.compare`.

    Raises:
        RunError: if there is nothing to compare, or something that was named is damaged.
        MismatchError: if no run was trained on ``features``.
        OutputError: if a file cannot be written.
    """
    runs = [each for each in named if isinstance(each, Run)]
    folders = [_folder(each, folder) for each in named if not isinstance(each, Run)]
    results = [open_result(each) for each in folders if is_result(each)] if named else find_results(folder)
    found = runs + [open_run(each) for each in folders if not is_result(each)]
    if not named and (not results or runs_in(folder)):
        found = find_runs(folder)
    if features is not None and found:
        found = with_cache(found, features)
    entries, part = as_entries(found), common_part(found)
    if baselines:
        from xfeat.head.compare.baselines import fit_baselines

        entries += fit_baselines(_first_with_predictions(entries), part)
    comparison = replace(compare_entries(entries, part, sort=sort), results=compared_results(results))
    if csv_file is not None:
        _write(csv_file, as_csv(comparison), option="--csv")
    if html_file is not None:
        from xfeat.head.compare.page import render_comparison

        _write(html_file, render_comparison(comparison), option="--html")
    return comparison


def _folder(named: Path, folder: Path) -> Path:
    """Return the folder of a run that is given by its folder, or by its name among all runs."""
    return named if named.exists() or not (folder / named).exists() else folder / named


def _first_with_predictions(entries: list[Entry]) -> Run:
    for entry in entries:
        if entry.run is not None and not entry.problem:
            return entry.run
    raise RunError(
        "no run has readable predictions, which --baselines needs",
        expected="a predictions.csv in at least one run folder",
        fix="train a run again with xhead train",
    )


def _write(file: Path, text: str, *, option: str) -> None:
    with replacing(file, elsewhere=f"choose another place with {option}") as partial:
        partial.write_text(text, encoding="utf-8", errors="surrogateescape")
