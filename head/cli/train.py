"""``xhead train``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import xfeat
import xfeat.head.cli.options as options
from xfeat.featurize.console import Printed, json_option, progress_bars
from xfeat.head.reports.formatting import percent, threshold_line, with_interval
from xfeat.head.reports.study_text import study_lines, subgroup_lines

if TYPE_CHECKING:
    from xfeat.head.evaluation.operating_point import OperatingPoint
    from xfeat.head.runs.reader import Run

_PRINTED = (
    "epochs",
    "best_epoch",
    "ensemble",
    "metrics",
    "temperature",
    "calibration",
    "operating_point",
    "audit",
    "statistics",
    "subgroups",
)


@click.command()
@options.features_option
@click.option("--name", help="Name of the run.  [default: the time]")
@options.runs_option
@options.head_options
@options.target_options
@click.option(
    "--threshold-from",
    metavar="CROSSVAL|NUMBER",
    help="Take the threshold of a cross-validation with --positive, which chose it on all images, or this number.",
)
@options.bins_option
@click.option(
    "--calibrate/--no-calibrate",
    default=True,
    help="Calibrate the probabilities: fit a temperature on the validation images.",
)
@options.run_options
@json_option
def train(features: Path, runs: Path, **settings: Any) -> Printed:
    """Train one head and write its run folder with metrics, predictions and a report.

    The weights of the epoch with the lowest validation loss are used; the test split is used once, afterwards.
    """
    with progress_bars() as progress:
        run = xfeat.train(features, runs, progress=progress, **settings)
    return _as_json(run), _as_text(run)


def _as_json(run: Run) -> dict[str, Any]:
    stored = run.to_dict()
    return {
        "run": str(run.folder),
        "classes": list(run.class_names),
        **{name: stored[name] for name in _PRINTED},
    }


def _as_text(run: Run) -> list[str]:
    part = run.shown_part
    return [
        f"{run.folder}: {_epochs_text(run)}",
        *study_lines(part, run.statistics[part], all_in=str(run.folder / "run.json")),
        *_calibration_lines(run, part),
        *_operating_lines(run.operating_point),
        *subgroup_lines(run.subgroups),
        f"report: {run.folder / 'report.html'}",
    ]


def _epochs_text(run: Run) -> str:
    if run.ensemble is None:
        return f"best epoch {run.best_epoch} of {run.epochs}"
    best = ", ".join(map(str, run.ensemble["best_epochs"]))
    return f"{run.ensemble['members']} heads averaged, best epochs {best} of {run.epochs}"


def _calibration_lines(run: Run, part: str) -> list[str]:
    calibration = run.calibration
    if calibration["note"]:
        return [f"temperature 1 ({calibration['note']})"]
    before, after = calibration["before"][part], calibration["after"][part]
    return [
        f"temperature {calibration['temperature']:.3f}: {part} calibration error "
        f"{percent(before['ece'])} → {percent(after['ece'])}, loss {before['loss']:.4f} → {after['loss']:.4f}"
    ]


def _operating_lines(point: OperatingPoint | None) -> list[str]:
    if point is None:
        return []
    wanted = "" if point.target_sensitivity is None else f" for a sensitivity of {percent(point.target_sensitivity)}"
    lines = [
        f"operating point: {point.positive} if probability ≥ {point.threshold:.4f}, chosen{wanted} on {point.chosen_on}"
    ]
    parts = {"out of fold": point.out_of_fold, "valid": point.valid, "test": point.test}
    lines += [f"  {name}: {threshold_line(part)}" for name, part in parts.items() if part is not None]
    lines += [
        f"  at a prevalence of {percent(row['prevalence'])}: PPV {with_interval(row['ppv'], row['ppv_interval'])}, "
        f"NPV {with_interval(row['npv'], row['npv_interval'])}"
        for row in point.prevalences
    ]
    return lines
