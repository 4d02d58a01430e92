"""A whole cross-validation: from a cache to the folder with its metrics, predictions and page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xfeat.featurize.audit.stored import audit_of
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.progress import Progress, steps_of
from xfeat.head.crossval.baselines import check_memory, cross_validate_baselines
from xfeat.head.crossval.report import save_crossval
from xfeat.head.crossval.runner import checkpoint_folder, cross_validate
from xfeat.head.crossval.training import fold_checkpoints
from xfeat.head.evaluation.operating_point import positive_class
from xfeat.head.evaluation.subgroups import Bins, check_bins
from xfeat.head.runs.reader import new_run_name
from xfeat.head.runs.writer import RunWriter
from xfeat.head.specs import CrossvalSpec, HeadSpec, MemorySpec, TargetSpec, TrainSpec
from xfeat.head.tracking.backends import Tracking, tracked
from xfeat.head.tracking.tracker import Tracker, cache_parameters, head_parameters, part_metrics


class SavedCrossval(NamedTuple):
    """A cross-validation in its folder.

    Attributes:
        folder: with crossval.json, predictions.csv and report.html.
        facts: the content of crossval.json.
    """

    folder: Path
    facts: dict[str, Any]


def crossval_run(
    cache: FeatureCache,
    head_spec: HeadSpec,
    train_spec: TrainSpec,
    plan: CrossvalSpec,
    *,
    memory: MemorySpec,
    runs: Path,
    name: str | None,
    target: TargetSpec | None,
    bins: Bins | None,
    baselines: bool,
    open_trackers: Callable[[], Sequence[Tracker]],
    progress: Progress | None,
    call: Callable[..., Any],
) -> SavedCrossval:
    """Cross-validate, resuming from finished folds, and write a folder in ``runs``.

    Args:
        cache: the features.
        head_spec: the layers.
        train_spec: the optimisation.
        plan: folds and seeds.
        memory: limit for features.
        runs: folder of all runs.
        name: of the folder; by default ``crossval-`` and the time.
        target: the wanted operating point, if any.
        bins: of numbers in the further columns of the cache, for the figures of subgroups.
        baselines: also test scikit-learn's classifiers, with default settings.
        open_trackers: called once everything else has been checked; returns where the cross-validation is recorded.
        progress: called after each head, and after each fit of a baseline.
        call: runs the rendering; a :class:`xfeat.head.reports.worker.Worker` does it in another process.

    Returns:
        The folder, and the content of its crossval.json.

    Raises:
        RunError: if the name is invalid or taken.
        BusyError: if another process is using this cross-validation, or its name.
        OutputError: if a file cannot be written.
        Interrupted: on Ctrl-C, with the command that resumes.
        XfeatError: what :func:`xfeat.head.crossval.runner.cross_validate` raises.
    """
    writer = RunWriter(runs, name or f"crossval-{new_run_name()}", latest=False)
    check_bins(bins, cache.extra)
    if target is not None:
        positive_class(target, cache.class_names, np.asarray(cache.columns.label))
    if baselines:
        check_memory(cache, plan, memory)
    audit, compared = audit_of(cache), None
    parameters = {**head_parameters(head_spec, train_spec), **plan.to_dict(), **cache_parameters(cache)}
    trackers = open_trackers()
    folder = checkpoint_folder(runs, cache, head_spec, train_spec, plan, memory)
    with tracked(trackers, writer.target.name, parameters) as tracking, fold_checkpoints(folder) as checkpoints:

        def after_head(done: int, total: int) -> None:
            tracking.begin()
            if progress is not None:
                progress("cross-validating", done, total)

        specs = (cache, head_spec, train_spec, plan)
        result = cross_validate(*specs, memory=memory, checkpoints=checkpoints, progress=after_head)
        if baselines:
            compared = cross_validate_baselines(result, steps_of(progress, "baselines"))
        with writer:
            facts = save_crossval(writer, result, audit, compared, target=target, bins=bins, call=call)
        _track(tracking, facts, sorted(writer.target.iterdir()))
    return SavedCrossval(writer.target, facts)


def _track(tracking: Tracking, facts: dict[str, Any], files: list[Path]) -> None:
    """Record the accuracy of each fold as a curve, and the metrics over all folds."""
    found = part_metrics(facts["metrics"], "out_of_fold/")
    divisions = {"grouped": facts["accuracy"]}
    if facts["by_image"] is not None:
        divisions["by_image"] = facts["by_image"]["accuracy"]
    for division, accuracy in divisions.items():
        found |= {f"{division}/accuracy_{name}": accuracy[name] for name in ("mean", "std")}
        for fold, value in enumerate(accuracy["folds"]):
            tracking.record(fold, {f"{division}/accuracy_of_fold": value})
    tracking.end(found, files)
