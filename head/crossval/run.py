"""A whole cross-validation: from a cache to the folder with its metrics, predictions and page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xfeat.featurize.audit.stored import audit_of
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.head.crossval.baselines import check_memory, cross_validate_baselines
from xfeat.head.crossval.report import save_crossval
from xfeat.head.crossval.runner import FoldProgress, checkpoint_folder, cross_validate
from xfeat.head.crossval.training import fold_checkpoints
from xfeat.head.evaluation.operating_point import positive_class
from xfeat.head.evaluation.subgroups import Bins, check_bins
from xfeat.head.reports.worker import call_here
from xfeat.head.runs.reader import new_run_name
from xfeat.head.runs.writer import RunWriter
from xfeat.head.specs import CrossvalSpec, HeadSpec, MemorySpec, TargetSpec, TrainSpec
from xfeat.head.tracking.backends import Tracking, tracked
from xfeat.head.tracking.tracker import Tracker, cache_parameters, head_parameters, part_metrics


def _no_progress(what: str, unit: str) -> AbstractContextManager[FoldProgress]:
    return nullcontext(lambda done, total: None)


@dataclass(frozen=True, kw_only=True)
class CrossvalOptions:
    """Everything about a cross-validation except its specs.

    Attributes:
        name: of the folder; by default ``crossval-`` and the time.
        memory: limit for features.
        target: the wanted operating point, if any.
        bins: of numbers in the further columns of the cache, for the figures of subgroups.
        baselines: also test scikit-learn's classifiers, with default settings.
        open_trackers: called once everything else has been checked; returns where the cross-validation is recorded.
        progress: opens a progress bar, such as ``("cross-validating", "heads")``.
        call: runs the rendering; a :class:`xfeat.head.reports.worker.Worker` does it in another process.
    """

    name: str | None = None
    memory: MemorySpec = field(default_factory=MemorySpec)
    target: TargetSpec | None = None
    bins: Bins | None = None
    baselines: bool = False
    open_trackers: Callable[[], Sequence[Tracker]] = tuple
    progress: Callable[[str, str], AbstractContextManager[FoldProgress]] = _no_progress
    call: Callable[..., Any] = call_here


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
    runs: Path,
    options: CrossvalOptions = CrossvalOptions(),
) -> SavedCrossval:
    """Cross-validate, resuming from finished folds, and write a folder in ``runs``.

    Returns:
        The folder, and the content of its crossval.json.

    Raises:
        RunError: if the name is invalid or taken.
        BusyError: if another process is using this cross-validation, or its name.
        OutputError: if a file cannot be written.
        Interrupted: on Ctrl-C, with the command that resumes.
        XfeatError: what :func:`xfeat.head.crossval.runner.cross_validate` raises.
    """
    writer = RunWriter(runs, options.name or f"crossval-{new_run_name()}", latest=False)
    check_bins(options.bins, cache.extra)
    if options.target is not None:
        positive_class(options.target, cache.class_names, np.asarray(cache.columns.label))
    if options.baselines:
        check_memory(cache, plan, options.memory)
    audit, baselines = audit_of(cache), None
    parameters = {**head_parameters(head_spec, train_spec), **plan.to_dict(), **cache_parameters(cache)}
    trackers = options.open_trackers()
    folder = checkpoint_folder(runs, cache, head_spec, train_spec, plan, options.memory)
    with tracked(trackers, writer.target.name, parameters) as tracking, fold_checkpoints(folder) as checkpoints:
        with options.progress("cross-validating", "heads") as advance:

            def after_head(done: int, total: int) -> None:
                tracking.begin()
                advance(done, total)

            result = cross_validate(
                cache,
                head_spec,
                train_spec,
                plan,
                memory=options.memory,
                checkpoints=checkpoints,
                progress=after_head,
            )
        if options.baselines:
            with options.progress("baselines", "fits") as advance:
                baselines = cross_validate_baselines(result, advance)
        with writer:
            facts = save_crossval(
                writer, result, audit, baselines, target=options.target, bins=options.bins, call=options.call
            )
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
