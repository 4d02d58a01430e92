"""``xhead crossval``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xfeat.featurize.console import default_of, json_option, progress_bar
from xfeat.head.cli.options import (
    DRAWING,
    ensemble_option,
    features_option,
    head_options,
    head_specs,
    memory_option,
    open_cache,
    open_trackers_of,
    pooling_option,
    runs_option,
    tracking_options,
)
from xfeat.head.reports.formatting import class_lines, confusion_lines, interval, number, percent, points
from xfeat.head.specs import CrossvalSpec, MemorySpec

if TYPE_CHECKING:
    from xfeat.head.tracking.backends import Tracking


@click.command()
@features_option
@runs_option
@click.option("--name", help="Name of the folder for the figures and the page.  [default: crossval- and the time]")
@click.option("--folds", type=int, default=default_of(CrossvalSpec, "folds"), show_default=True, help="Parts.")
@click.option(
    "--seeds",
    type=int,
    default=default_of(CrossvalSpec, "seeds"),
    show_default=True,
    help="Repetitions, each with other folds and other initial weights.",
)
@click.option(
    "--by-image/--no-by-image",
    default=default_of(CrossvalSpec, "by_image"),
    show_default=True,
    help="Where patients have several images, also divide image by image, to show what that flatters.",
)
@click.option(
    "--baselines",
    is_flag=True,
    help="Also test scikit-learn's logistic regression and SVM on the same folds; they need the features in memory.",
)
@click.option(
    "--predictions", type=click.Path(path_type=Path), help="Another CSV file for the out-of-fold predictions."
)
@head_options
@ensemble_option
@pooling_option
@memory_option
@tracking_options
@json_option
def crossval(
    features: Path,
    runs: Path,
    name: str | None,
    folds: int,
    seeds: int,
    by_image: bool,
    baselines: bool,
    predictions: Path | None,
    members: int,
    pooling: str | None,
    memory_mb: float,
    mlflow: str | None,
    tensorboard: str | None,
    **settings: Any,
) -> tuple[dict[str, Any], str]:
    """Test every image once, with heads that have seen neither it nor its patient.

    All images with a label take part; the split of the cache plays no role. Folds are stratified, and keep patients
    (groups) and exact copies together. A fifth of each fold's training images chooses the epoch; with --ensemble N, N
    heads have an N-th of them each to choose by.

    The figures, the out-of-fold predictions and a page with the worst mistakes are a folder beside the runs. Finished
    folds are kept there until all of it is written: after Ctrl-C, a crash or a full disk, the same command goes on.
    """
    head_spec, train_spec = head_specs(settings)
    plan = CrossvalSpec(folds=folds, seeds=seeds, by_image=by_image, members=members)
    memory = MemorySpec(memory_mb=memory_mb)
    cache = open_cache(features, pooling)
    from xfeat.head.reports.worker import Worker

    with Worker(*DRAWING) as worker:
        from xfeat.featurize.audit.stored import audit_of
        from xfeat.head.crossval.baselines import check_memory, fold_baselines
        from xfeat.head.crossval.report import save_crossval
        from xfeat.head.crossval.runner import cross_validate, parts_folder
        from xfeat.head.crossval.table import check_target, save_out_of_fold
        from xfeat.head.crossval.training import kept_answers
        from xfeat.head.runs.reader import new_run_name
        from xfeat.head.runs.writer import RunWriter
        from xfeat.head.tracking.backends import tracked
        from xfeat.head.tracking.records import cache_parameters, head_parameters

        writer = RunWriter(runs, name or f"crossval-{new_run_name()}", latest=False)
        if predictions is not None:
            check_target(predictions)
        if baselines:
            check_memory(cache, plan, memory)
        audit, trackers = audit_of(cache), open_trackers_of(mlflow, tensorboard, runs)
        parameters = {**head_parameters(head_spec, train_spec), **plan.to_dict(), **cache_parameters(cache)}
        parts = parts_folder(runs, cache, head_spec, train_spec, plan, memory)
        with tracked(trackers, writer.target.name, parameters) as tracking, kept_answers(parts) as kept:
            with progress_bar("cross-validating", "heads") as advance:

                def after_head(done: int, total: int) -> None:
                    tracking.begin()
                    advance(done, total)

                result = cross_validate(
                    cache, head_spec, train_spec, plan, memory=memory, kept=kept, progress=after_head
                )
            if predictions is not None:
                save_out_of_fold(result, predictions)
            specs = {"head_spec": head_spec.to_dict(), "train_spec": train_spec.to_dict(), "audit": audit}
            figures = {**result.to_dict(seed=train_spec.seed), **specs}
            if baselines:
                with progress_bar("baselines", "fits") as advance:
                    figures["baselines"] = fold_baselines(result, seed=train_spec.seed, progress=advance)
            with writer:
                facts = save_crossval(writer, result, figures, call=worker)
            files = sorted(writer.target.iterdir()) + ([predictions] if predictions is not None else [])
            _track(tracking, figures, files)
    return {"crossval": str(writer.target), **facts}, _as_text(figures, writer.target)


def _track(tracking: Tracking, figures: dict[str, Any], files: list[Path]) -> None:
    """Tell the accuracy of each fold as a curve, and the figures over all of them."""
    from xfeat.head.tracking.records import part_metrics

    found = part_metrics(figures["metrics"], "out_of_fold/")
    ways = {"grouped": figures["accuracy"]}
    if figures["by_image"] is not None:
        ways["by_image"] = figures["by_image"]["accuracy"]
    for way, accuracy in ways.items():
        found |= {f"{way}/accuracy_{name}": accuracy[name] for name in ("mean", "std")}
        for fold, share in enumerate(accuracy["folds"]):
            tracking.record(fold, {f"{way}/accuracy_of_fold": share})
    tracking.end(found, files)


def _as_text(figures: dict[str, Any], folder: Path) -> str:
    kept = "patients" if figures["grouped"] else "exact copies"
    repeated = f" × {figures['seeds']} seeds" if figures["seeds"] > 1 else ""
    repeated += f", {figures['ensemble']} heads averaged" if figures["ensemble"] > 1 else ""
    metrics = figures["metrics"]
    lines = [
        f"{figures['images']} labelled images in {figures['groups']} groups, {figures['folds']} folds{repeated}, "
        f"{kept} together; the split of the cache plays no role",
        _accuracy_line("accuracy", figures["accuracy"]),
        f"AUC {number(metrics['auc'])} over all out-of-fold predictions",
        *confusion_lines(figures["classes"], figures["confusion_matrix"]),
        *class_lines(metrics["classes"]),
    ]
    if figures["by_image"] is not None:
        lines.append(_accuracy_line("image by image", figures["by_image"]["accuracy"]))
        difference = points(figures["by_image"]["accuracy"]["mean"] - figures["accuracy"]["mean"])
        lines.append(f"difference: {difference} percentage points; image by image, patients are in several folds")
    elif not figures["grouped"]:
        lines.append("the images have no groups: if patients have several images, these figures are too good")
    lines += [_baseline_line(row) for row in figures.get("baselines", [])]
    lines.append(f"report: {folder / 'report.html'}")
    return "\n".join(lines)


def _baseline_line(row: dict[str, Any]) -> str:
    ends = row["difference"]["interval"]
    around = "" if ends is None else " ({} to {})".format(*map(points, ends))
    less = points(row["difference"]["accuracy"])
    return f"{_accuracy_line(row['name'], row['accuracy'])}; heads less this: {less} points{around}"


def _accuracy_line(name: str, accuracy: dict[str, Any]) -> str:
    return (
        f"{name}: {percent(accuracy['mean'])} ± {100 * accuracy['std']:.1f} over the folds, "
        f"95 % interval {interval(accuracy['interval'])}"
    )
