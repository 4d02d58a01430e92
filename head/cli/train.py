"""``xhead train``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import xfeat.head.cli.options as options
from xfeat.featurize.console import Printed, json_option, pop_spec, progress_bar
from xfeat.head.reports.formatting import class_lines, interval, number, threshold_line, with_interval
from xfeat.head.specs import HeadSpec, MemorySpec, TargetSpec, TrainSpec

if TYPE_CHECKING:
    from xfeat.head.evaluation.operating_point import OperatingPoint
    from xfeat.head.runs.reader import Run
    from xfeat.head.training.history import EpochRecord

_PRINTED = ("epochs", "best_epoch", "ensemble", "metrics", "temperature", "calibration", "operating_point", "audit")


@click.command()
@options.features_option
@click.option("--name", help="Name of the run.  [default: the time]")
@options.runs_option
@options.head_options
@click.option("--positive", metavar="CLASS", help="Choose a threshold for this class, on the validation images.")
@click.option(
    "--target-sensitivity",
    type=float,
    metavar="P",
    help="Sensitivity that the threshold must reach on the validation images.  "
    f"[default: {TargetSpec.target_sensitivity}; needs --positive]",
)
@click.option(
    "--calibrate/--no-calibrate",
    default=True,
    help="Calibrate the probabilities: fit a temperature on the validation images.",
)
@options.run_options
@json_option
def train(
    features: Path,
    name: str | None,
    runs: Path,
    positive: str | None,
    target_sensitivity: float | None,
    members: int,
    pooling: str | None,
    **settings: Any,
) -> Printed:
    """Train one head and write its run folder with metrics, predictions and a report.

    The weights of the epoch with the lowest validation loss are used; the test split is used once, afterwards.
    """
    head_spec, train_spec = pop_spec(HeadSpec, settings), pop_spec(TrainSpec, settings)
    memory, open_trackers = pop_spec(MemorySpec, settings), options.trackers_opener(settings, runs)
    target = _target(positive, target_sensitivity)
    from xfeat.head.reports.worker import Worker

    with Worker(*options.WORKER_MODULES) as worker:
        cache = options.open_cache(features, pooling)
        from xfeat.head.runs.reader import new_run_name, read_history
        from xfeat.head.tracking.backends import tracked
        from xfeat.head.tracking.tracker import cache_parameters, final_metrics, head_parameters
        from xfeat.head.train import TrainOptions, train_run

        trackers, name = open_trackers(), name or new_run_name()
        parameters = {**head_parameters(head_spec, train_spec), "ensemble": members, **cache_parameters(cache)}
        with tracked(trackers, name, parameters) as tracking, progress_bar("training", "epochs") as advance:

            def after_epoch(record: EpochRecord) -> None:
                advance(record.epoch, train_spec.epochs * members)
                tracking.begin()
                if members == 1:
                    tracking.epoch(record)

            train_options = TrainOptions(
                target=target, memory=memory, members=members, progress=after_epoch, call=worker, **settings
            )
            run = train_run(cache, head_spec, train_spec, runs=runs, name=name, options=train_options)
            if members > 1:  # the mean over the members is tracked instead of each one
                for record in read_history(run):
                    tracking.epoch(record)
            tracking.end(final_metrics(run), sorted(run.folder.iterdir()))
    return _as_json(run), _as_text(run)


def _target(positive: str | None, sensitivity: float | None) -> TargetSpec | None:
    if positive is None:
        if sensitivity is not None:
            raise click.UsageError("--target-sensitivity needs --positive CLASS")
        return None
    return TargetSpec(positive=positive, **({} if sensitivity is None else {"target_sensitivity": sensitivity}))


def _as_json(run: Run) -> dict[str, Any]:
    stored = run.to_dict()
    return {
        "run": str(run.folder),
        "classes": list(run.class_names),
        **{name: stored[name] for name in _PRINTED},
    }


def _as_text(run: Run) -> list[str]:
    part = run.shown_part
    metrics = run.metrics[part]
    return [
        f"{run.folder}: {_epochs_text(run)}",
        f"{part}: {metrics['images']} images, accuracy {metrics['accuracy']:.4f} "
        f"({interval(metrics['accuracy_interval'])}), AUC {number(metrics['auc'])}, loss {metrics['loss']:.4f}",
        *class_lines(metrics["confusion_matrix"], metrics["classes"], all_in=str(run.folder / "run.json")),
        *_calibration_lines(run, part),
        *_operating_lines(run.operating_point),
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
        f"{before['ece']:.4f} → {after['ece']:.4f}, loss {before['loss']:.4f} → {after['loss']:.4f}"
    ]


def _operating_lines(point: OperatingPoint | None) -> list[str]:
    if point is None:
        return []
    lines = [
        f"operating point: {point.positive} if probability ≥ {point.threshold:.4f}, "
        f"for a sensitivity of {point.target_sensitivity:g} on the validation images"
    ]
    parts = {"valid": point.valid, "test": point.test}
    lines += [f"  {name}: {threshold_line(part)}" for name, part in parts.items() if part is not None]
    lines += [
        f"  at a prevalence of {row['prevalence']:g}: PPV {with_interval(row['ppv'], row['ppv_interval'])}, "
        f"NPV {with_interval(row['npv'], row['npv_interval'])}"
        for row in point.prevalences
    ]
    return lines
