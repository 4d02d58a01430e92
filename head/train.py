"""A whole training: from a cache to a run folder, by split, fit, predict, assess, report."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from xfeat.featurize.audit.stored import audit_of
from xfeat.featurize.backbones.weights import sha256_of
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.cache.rows import unchanged
from xfeat.featurize.specs import require
from xfeat.featurize.system.versions import library_versions
from xfeat.head.data.rows import Reading, Rows, collected, labelled_blocks, plan_reading
from xfeat.head.data.splits import Split, split_rows
from xfeat.head.evaluation.assess import Assessment, assess, study_parts
from xfeat.head.evaluation.metrics import Metrics
from xfeat.head.evaluation.operating_point import ChosenThreshold, positive_class
from xfeat.head.evaluation.predictions import Predictions
from xfeat.head.evaluation.subgroups import Bins, check_bins
from xfeat.head.reports.run_report import cautions_of, render_report
from xfeat.head.reports.worker import call_here
from xfeat.head.runs.origin import origin_of
from xfeat.head.runs.reader import (
    HISTORY_FILE,
    PREDICTIONS_FILE,
    REPORT_FILE,
    RUN_FILE,
    Members,
    Run,
    SplitOrigin,
    new_run_name,
    open_run,
)
from xfeat.head.runs.writer import RunWriter, save_predictions, write_table
from xfeat.head.specs import HeadSpec, MemorySpec, TargetSpec, TrainSpec
from xfeat.head.training.ensemble import FittedEnsemble, Share, fit_ensemble, shares_of
from xfeat.head.training.fit import FittedHead, Progress, fit_head
from xfeat.head.training.history import EpochRecord

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Everything about a training except its specs.

    Attributes:
        target: the wanted operating point, or a chosen threshold, if any.
        calibrate: fit a temperature on the validation rows.
        split: replaces the split of the cache, or the one made with the seed.
        memory: limit for features; more are read from the disk, in another order.
        members: heads of the ensemble. With more than one, the validation rows are used for the temperature and the
            operating point only.
        bins: of numbers in the further columns of the cache, for the figures of subgroups.
        progress: called after each epoch.
        call: runs metrics and plots; a :class:`xfeat.head.reports.worker.Worker` does it in another process.
    """

    target: TargetSpec | ChosenThreshold | None = None
    calibrate: bool = True
    split: Split | None = None
    memory: MemorySpec = field(default_factory=MemorySpec)
    members: int = 1
    bins: Bins | None = None
    progress: Progress | None = None
    call: Callable[..., Any] = call_here


def train_run(
    cache: FeatureCache,
    head_spec: HeadSpec,
    train_spec: TrainSpec,
    *,
    runs: Path,
    name: str | None = None,
    options: TrainOptions = TrainOptions(),
) -> Run:
    """Train a head on a cache and write its folder in ``runs``, whole or not at all; its name is by default the time.

    Raises:
        DataError: if the labels or splits do not allow training, or the operating point cannot be chosen.
        CacheError: if the file changes during training.
        DivergedError: if training diverges.
        RunError: if the name is invalid or taken.
        BusyError: if another training is using the name.
        OutputError: if the folder cannot be written.
    """
    with RunWriter(runs, name or new_run_name()) as writer, unchanged(cache):
        split = options.split or split_rows(cache, seed=train_spec.seed)
        if options.target is not None:  # checked now rather than after hours of training
            _check_target(options, cache, split, head_spec)
        check_bins(options.bins, cache.extra)
        audit = audit_of(cache)
        if cache.spec.export_differences:
            logger.warning(
                "%s was %s; the exported model computes in float32, and its outputs will differ slightly: "
                "xexport onnx then asks for --tolerance",
                cache.path,
                " and ".join(cache.spec.export_differences.values()),
            )
        reading = split_reading(cache, split, options.memory)
        fitted = _fit(cache, head_spec, train_spec, split, reading, options)
        members: Members | None = None
        if isinstance(fitted, FittedEnsemble):
            head_spec = fitted.head
            members = Members(members=len(fitted.best_epochs), best_epochs=list(fitted.best_epochs))
        assessed: Assessment = options.call(
            assess,
            _predict(fitted, cache, split),
            cache.class_names,
            target=options.target,
            calibrate=options.calibrate,
        )
        if assessed.operating_point is not None and assessed.operating_point.note:
            logger.warning("%s", assessed.operating_point.note)
        statistics, subgroups = options.call(
            study_parts,
            assessed.predictions,
            cache.class_names,
            dict(cache.extra),
            split.used[0],
            options.bins,
        )
        run = Run(
            folder=writer.target,
            name=writer.target.name,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            feature_spec=cache.spec,
            head_spec=head_spec,
            train_spec=train_spec,
            class_names=cache.class_names,
            dim=int(cache.features.shape[-1]),
            cache=origin_of(cache),
            split=SplitOrigin(source=split.source, images={part: len(rows) for part, rows in split.rows.items()}),
            epochs=len(fitted.history),
            best_epoch=fitted.best_epoch,
            ensemble=members,
            reading=reading.to_dict(),
            audit=audit,
            metrics=assessed.metrics,
            temperature=assessed.predictions.temperature,
            calibration=assessed.calibration,
            operating_point=assessed.operating_point,
            crossval=options.target.crossval if isinstance(options.target, ChosenThreshold) else None,
            statistics=statistics,
            subgroups=subgroups,
            head_sha256=writer.save_head(fitted.model),
            versions=library_versions(),
            metrics_averaged_views=_metrics_averaged_views(fitted, cache, split, options),
        )
        write_table(writer.folder / HISTORY_FILE, EpochRecord._fields, fitted.history)
        save_predictions(writer, assessed.predictions, cache.class_names)
        digests = {name: sha256_of(writer.folder / name) for name in (HISTORY_FILE, PREDICTIONS_FILE)}
        run = replace(run, file_sha256=digests)
        writer.save_json(RUN_FILE, run.to_dict())
        cautions = cautions_of(run, assessed.predictions, cache)
        group_of = dict(zip(cache.columns.path, cache.columns.group, strict=True))
        report = (run, fitted.history, assessed.predictions, group_of, cautions, cache.skipped, cache.images.path)
        page = options.call(render_report, *report)
        writer.save_text(REPORT_FILE, page)
    return open_run(writer.target)


def _check_target(options: TrainOptions, cache: FeatureCache, split: Split, head_spec: HeadSpec) -> None:
    target = options.target
    assert target is not None
    point = target.point if isinstance(target, ChosenThreshold) else target
    positive_class(point, cache.class_names, np.asarray(cache.columns.label)[split.rows["valid"]])
    if not isinstance(target, ChosenThreshold) or target.crossval is None:
        return
    require(
        options.calibrate,
        "the threshold was chosen on calibrated probabilities",
        expected="a calibrated head",
        found="--no-calibrate",
    )
    if HeadSpec.from_dict(target.crossval["head_spec"]) != head_spec:
        logger.warning("the threshold was chosen for heads with other layers: it may not reach its sensitivity here")


def split_reading(cache: FeatureCache, split: Split, memory: MemorySpec) -> Reading:
    """Decide whether the training and validation rows of a split fit into memory."""
    return plan_reading(cache, len(split.rows["train"]) + len(split.rows["valid"]), memory)


def _fit(
    cache: FeatureCache,
    head_spec: HeadSpec,
    train_spec: TrainSpec,
    split: Split,
    reading: Reading,
    options: TrainOptions,
) -> FittedHead:
    classes, progress, rows = len(cache.class_names), options.progress, split.rows["train"]
    shares: list[Share] = []
    if options.members > 1:
        labels, groups = np.asarray(cache.columns.label)[rows], cache.group_keys[rows]
        shares = shares_of(labels, groups, options.members, seed=train_spec.seed, path=cache.path)
    train, valid = (reading.load(cache, split.rows[part]) for part in ("train", "valid"))
    if shares:
        return fit_ensemble(head_spec, train_spec, shares, train, classes=classes, progress=progress)
    return fit_head(head_spec, train_spec, train, valid, classes=classes, progress=progress)


def _predict(fitted: FittedHead, cache: FeatureCache, split: Split, *, views_averaged: bool = False) -> Predictions:
    rows, parts = split.used
    predict = partial(_averaged_logits, fitted) if views_averaged else fitted.logits_of
    return Predictions(
        paths=[cache.columns.path[row] for row in rows.tolist()],
        split=parts,
        labels=np.asarray(cache.columns.label)[rows].astype(np.int64),
        groups=cache.group_keys[rows],
        logits=collected(map(predict, labelled_blocks(cache, rows)), len(rows)).numpy(),
    )


def _averaged_logits(fitted: FittedHead, rows: Rows) -> Tensor:
    """Return logits (n, C) whose softmax is the mean of the probabilities of all views (n, V, D)."""
    count, views, dim = rows.features.shape
    logits = fitted.logits(rows.features.reshape(count * views, dim)).reshape(count, views, -1)
    return logits.log_softmax(2).logsumexp(1) - math.log(views)


def _metrics_averaged_views(
    fitted: FittedHead, cache: FeatureCache, split: Split, options: TrainOptions
) -> dict[str, Metrics] | None:
    if cache.features.ndim == 2:
        return None
    averaged = _predict(fitted, cache, split, views_averaged=True)
    assessed: Assessment = options.call(assess, averaged, cache.class_names, calibrate=options.calibrate)
    return assessed.metrics
