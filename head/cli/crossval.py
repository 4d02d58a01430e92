"""``xhead crossval``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import xfeat
import xfeat.head.cli.options as options
from xfeat.featurize.console import Printed, json_option, progress_bars, spec_option
from xfeat.featurize.text import printable
from xfeat.head.reports.formatting import accuracy_line, percent, points
from xfeat.head.reports.study_text import elsewhere_lines, study_lines, subgroup_lines
from xfeat.head.specs import CrossvalSpec


@click.command()
@options.features_option
@options.runs_option
@click.option("--name", help="Name of the result folder.  [default: crossval- and the time]")
@spec_option(CrossvalSpec, "folds", int, "Number of folds.")
@spec_option(CrossvalSpec, "seeds", int, "Repetitions, each with different folds and initial weights.")
@spec_option(
    CrossvalSpec,
    "by_image",
    bool,
    "If patients have several images, also use image-level folds, to show how much higher the accuracy seems.",
)
@options.target_options
@spec_option(
    CrossvalSpec,
    "leave_out",
    str,
    "Also train without each value of this further column in turn, such as hospital, and test on it.",
    metavar="COLUMN",
)
@options.bins_option
@click.option(
    "--baselines",
    is_flag=True,
    help="Also test scikit-learn baselines with default settings (logistic regression and SVM) on the same folds. They "
    "need the features of a fold in memory.",
)
@options.head_options
@options.run_options
@json_option
def crossval(features: Path, runs: Path, **settings: Any) -> Printed:
    """Test every image once, by a head trained on neither this image nor its patient.

    All labelled images are used; the split of the cache is ignored. Folds are stratified, and keep patients (groups)
    and exact copies together. A fifth of each fold's training images is held out to choose the epoch; with --ensemble
    N, each of N heads holds out 1/N to choose its epoch.

    The metrics, the out-of-fold predictions and a page with the worst mistakes are written to a folder in --runs.
    Finished folds are stored there until then: after Ctrl-C, a crash or a full disk, the same command resumes.
    """
    with progress_bars() as progress:
        folder, facts = xfeat.cross_validate(features, runs, progress=progress, **settings)
    return {"crossval": str(folder), **facts}, _as_text(facts, folder)


def _as_text(facts: dict[str, Any], folder: Path) -> list[str]:
    together = "patients" if facts["grouped"] else "exact copies"
    repeated = f" × {facts['seeds']} seeds" if facts["seeds"] > 1 else ""
    repeated += f", ensembles of {facts['ensemble']} heads" if facts["ensemble"] > 1 else ""
    lines = [
        f"{facts['images']} labelled images in {facts['groups']} groups, {facts['folds']} folds{repeated}; "
        f"{together} are in one fold, and the split of the cache is ignored",
        accuracy_line("accuracy", facts["accuracy"]),
        *study_lines("out of fold", facts["statistics"], all_in=str(folder / "crossval.json")),
    ]
    if facts["by_image"] is not None:
        lines.append(accuracy_line("image-level folds", facts["by_image"]["accuracy"]))
        difference = points(facts["by_image"]["accuracy"]["mean"] - facts["accuracy"]["mean"])
        lines.append(f"difference: {difference} percentage points; image-level folds split patients")
    elif not facts["grouped"]:
        lines.append(
            "the images have no groups: if patients have several images, these metrics are optimistically biased"
        )
    if baselines := facts.get("baselines"):
        lines += ["scikit-learn baselines with default settings:", *map(_baseline_line, baselines)]
    lines += [*_threshold_lines(facts["operating_point"], folder), *subgroup_lines(facts["subgroups"])]
    lines += elsewhere_lines(facts["elsewhere"])
    lines.append(f"report: {folder / 'report.html'}")
    return lines


def _threshold_lines(point: dict[str, Any] | None, folder: Path) -> list[str]:
    if point is None:
        return []
    return [
        f"threshold: {printable(point['positive'])} if probability ≥ {point['threshold']:.4f}, "
        f"chosen for a sensitivity of {percent(point['target_sensitivity'])} on {point['chosen_on']}",
        *([point["note"]] if point["note"] else []),
        f"to train a head with it: xhead train --threshold-from {folder}",
    ]


def _baseline_line(row: dict[str, Any]) -> str:
    name, difference = row["name"].removesuffix(" (scikit-learn)"), row["difference"]
    ends = "" if difference["interval"] is None else " ({} to {})".format(*map(points, difference["interval"]))
    less = f"xfeat minus {name}: {points(difference['accuracy'])} points{ends}"
    return f"  {accuracy_line(name, row['accuracy'])}; {less}"
