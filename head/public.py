"""The public functions of this package: what ``import xfeat`` offers, and what its commands call."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.errors import ArgumentError, SpecError
from xfeat.featurize.keyword_settings import keyword_settings, spec_from
from xfeat.featurize.progress import Progress, StrPath, steps_of
from xfeat.featurize.specs import DEFAULT_CACHE
from xfeat.head.specs import DEFAULT_RUNS, CrossvalSpec, HeadSpec, MemorySpec, TargetSpec, TrainSpec

if TYPE_CHECKING:
    from xfeat.head.crossval.run import SavedCrossval
    from xfeat.head.evaluation.operating_point import ChosenThreshold
    from xfeat.head.evaluation.subgroups import Bins
    from xfeat.head.runs.reader import Run
    from xfeat.head.sweep.ranking import SweepResult
    from xfeat.head.tracking.tracker import Tracker
    from xfeat.head.training.history import EpochRecord

Features = StrPath | FeatureCache
"""A cache, or the path of its file."""

# Imported by the worker process while this process imports torch.
_WORKER_MODULES = (
    "xfeat.head.evaluation.assess",
    "xfeat.head.reports.plots",
    "sklearn.metrics",
    "sklearn.calibration",
    "scipy.optimize",
    "jinja2",
)


@keyword_settings(head=HeadSpec, training=TrainSpec, memory=MemorySpec)
def train(
    features: Features = DEFAULT_CACHE,
    runs: StrPath = DEFAULT_RUNS,
    *,
    head: HeadSpec,
    training: TrainSpec,
    memory: MemorySpec,
    name: str | None = None,
    positive: str | None = None,
    target_sensitivity: float | None = None,
    threshold_from: StrPath | float | None = None,
    bins: Bins | None = None,
    calibrate: bool = True,
    members: int = 1,
    corrections: StrPath | None = None,
    pooling: str | None = None,
    mlflow: str | None = None,
    tensorboard: StrPath | None = None,
    progress: Progress | None = None,
) -> Run:
    """Train one head and write its run folder with metrics, predictions and a report: ``xhead train``.

    The weights of the epoch with the lowest validation loss are used; the test split is used once, afterwards.

    Args:
        features: the cache, or its path.
        runs: folder of all runs.
        name: of the run; by default the time.
        positive: class for which a threshold is chosen, on the validation images.
        target_sensitivity: that the threshold must reach there; 0.95 by default.
        threshold_from: a cross-validation with ``positive``, whose threshold is taken instead, or a number.
        bins: upper ends of the bins of further columns of numbers, for subgroups; by default quartiles.
        calibrate: fit a temperature on the validation images.
        members: heads of an ensemble, each holding out a different part, averaged into one.
        pooling: features that the head uses; by default the cache's.
        corrections: table of images to exclude, relabel or regroup.
        mlflow: server or store to record in as well.
        tensorboard: folder for event files; empty for the one in ``runs``.
        progress: called after each epoch.

    Returns:
        The run, read back from its folder.

    Raises:
        SpecError: if a setting is out of range.
        XfeatError: as :func:`xfeat.head.train.train_run` says; what was asked of a tracker that cannot be used.
    """
    target: TargetSpec | ChosenThreshold | None = None
    if threshold_from is None:
        target = _target(positive, target_sensitivity)
    elif target_sensitivity is not None:
        raise SpecError(
            "a threshold is either taken or chosen",
            expected="threshold_from, or target_sensitivity",
            found="both",
            fix="give --target-sensitivity to xhead crossval, or leave out --threshold-from",
        )
    from xfeat.head.reports.worker import Worker

    with Worker(*_WORKER_MODULES) as worker:
        cache = open_features(features, pooling, corrections)
        if threshold_from is not None:
            from xfeat.head.crossval.stored import threshold_from as threshold_of

            target = threshold_of(str(threshold_from), cache, Path(runs), positive)
        from xfeat.head.runs.reader import new_run_name, read_history
        from xfeat.head.tracking.backends import tracked
        from xfeat.head.tracking.tracker import cache_parameters, final_metrics, head_parameters
        from xfeat.head.train import TrainOptions, train_run

        trackers, name = _trackers(mlflow, tensorboard, runs), name or new_run_name()
        parameters = {**head_parameters(head, training), "ensemble": members, **cache_parameters(cache)}
        with tracked(trackers, name, parameters) as tracking:

            def after_epoch(record: EpochRecord) -> None:
                if progress is not None:
                    progress("training", record.epoch, training.epochs * members)
                tracking.begin()
                if members == 1:
                    tracking.epoch(record)

            options = TrainOptions(
                target=target,
                calibrate=calibrate,
                memory=memory,
                members=members,
                bins=bins,
                progress=after_epoch,
                call=worker,
            )
            run = train_run(cache, head, training, runs=Path(runs), name=name, options=options)
            if members > 1:  # the mean over the members is tracked instead of each one
                for record in read_history(run):
                    tracking.epoch(record)
            tracking.end(final_metrics(run), sorted(run.folder.iterdir()))
    return run


@keyword_settings(head=HeadSpec, training=TrainSpec, plan=CrossvalSpec, memory=MemorySpec)
def cross_validate(
    features: Features = DEFAULT_CACHE,
    runs: StrPath = DEFAULT_RUNS,
    *,
    head: HeadSpec,
    training: TrainSpec,
    plan: CrossvalSpec,
    memory: MemorySpec,
    name: str | None = None,
    positive: str | None = None,
    target_sensitivity: float | None = None,
    bins: Bins | None = None,
    baselines: bool = False,
    corrections: StrPath | None = None,
    pooling: str | None = None,
    mlflow: str | None = None,
    tensorboard: StrPath | None = None,
    progress: Progress | None = None,
) -> SavedCrossval:
    """Test every image once, by a head trained on neither it nor its patient: ``xhead crossval``.

    All labelled images are used; the split of the cache is ignored. Finished folds are stored: after an interrupt, the
    same call resumes.

    Args:
        features: the cache, or its path.
        runs: folder of all runs.
        name: of the result folder; by default ``crossval-`` and the time.
        positive: class for which a threshold is chosen, on the out-of-fold predictions of all images.
        target_sensitivity: that the threshold must reach there; 0.95 by default.
        bins: upper ends of the bins of further columns of numbers, for subgroups; by default quartiles.
        baselines: also test scikit-learn's classifiers with default settings on the same folds.
        pooling: features that the head uses; by default the cache's.
        corrections: table of images to exclude, relabel or regroup.
        mlflow: server or store to record in as well.
        tensorboard: folder for event files; empty for the one in ``runs``.
        progress: called after each head, and after each fit of a baseline.

    Returns:
        The folder, and the content of its crossval.json.

    Raises:
        XfeatError: as :func:`xfeat.head.crossval.run.crossval_run` says.
    """
    target = _target(positive, target_sensitivity)
    cache = open_features(features, pooling, corrections)
    from xfeat.head.reports.worker import Worker

    with Worker(*_WORKER_MODULES) as worker:
        from xfeat.head.crossval.run import crossval_run

        return crossval_run(
            *(cache, head, training, plan),
            memory=memory,
            runs=Path(runs),
            name=name,
            target=target,
            bins=bins,
            baselines=baselines,
            open_trackers=partial(_trackers, mlflow, tensorboard, runs),
            progress=progress,
            call=worker,
        )


def sweep(
    features: Features = DEFAULT_CACHE,
    runs: StrPath = DEFAULT_RUNS,
    *,
    name: str | None = None,
    seeds: int = 1,
    first_seed: int = 0,
    trials: int | None = None,
    sampler: str = "spread",
    rank: str = "loss",
    time_limit: float | None = None,
    device: str = "cpu",
    memory_mb: float = MemorySpec.memory_mb,
    corrections: StrPath | None = None,
    mlflow: str | None = None,
    tensorboard: StrPath | None = None,
    progress: Progress | None = None,
    **axes: Any,
) -> SweepResult:
    """Train many heads at once and write the best one as a run: ``xhead sweep``.

    Trials are ranked on the validation images; only the best one is tested on the test images. The same call resumes an
    interrupted sweep.

    Args:
        features: the cache, or its path.
        runs: folder of all runs.
        name: of the sweep; by default the same for the same cache and settings.
        seeds: number of seeds per combination.
        first_seed: also used to draw combinations.
        trials: try so many combinations; by default all.
        sampler: ``spread``, or ``optuna``, which proposes combinations from earlier results.
        rank: validation metric to rank by.
        time_limit: start no more heads after so many seconds.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``.
        memory_mb: features larger than this, as float32, stay on the disk.
        corrections: table of images to exclude, relabel or regroup.
        mlflow: server or store to record in as well.
        tensorboard: folder for event files; empty for the one in ``runs``.
        progress: called as trials finish.
        axes: what to try: a setting of :class:`xfeat.head.specs.HeadSpec` or :class:`xfeat.head.specs.TrainSpec`, or
            ``pooling``, to a list of its values; or to a text as on the command line, such as ``"1e-4..1e-2"``.

    Returns:
        The ranked combinations, and the run of the best trial.

    Raises:
        ArgumentError: if there is no such setting.
        DivergedError: if every combination diverged.
        XfeatError: as :class:`xfeat.head.sweep.runner.Sweep` says.
    """
    from xfeat.head.sweep.space import DEFAULT_AXES, SweepSpec, as_axis
    from xfeat.head.sweep.trials import SETTINGS

    if unknown := sorted(axes.keys() - set(SETTINGS)):
        raise ArgumentError("sweep(): unknown argument", expected=", ".join(SETTINGS), found=", ".join(unknown))
    given = {key: as_axis(key, values) for key, values in axes.items() if values is not None}
    tried = {key: axis for key in SETTINGS if (axis := given.get(key, DEFAULT_AXES.get(key))) is not None}
    choices = {"seeds": seeds, "first_seed": first_seed, "trials": trials, "sampler": sampler, "rank": rank}
    spec, memory = spec_from(SweepSpec, {"axes": tried, **choices}), spec_from(MemorySpec, {"memory_mb": memory_mb})
    cache = open_features(features, corrections=corrections)
    trackers = _trackers(mlflow, tensorboard, runs)
    from xfeat.head.sweep.run import sweep_run
    from xfeat.head.sweep.runner import Sweep

    work = Sweep(cache, spec, runs=Path(runs), name=name, memory=memory, device=device)
    return sweep_run(work, trackers, time_limit_s=time_limit, progress=steps_of(progress, "sweep"))


def open_features(features: Features, pooling: str | None = None, corrections: StrPath | None = None) -> FeatureCache:
    """Return a cache, corrected, with the features of a pooling, by default its own."""
    cache = features if isinstance(features, FeatureCache) else FeatureCache.open(Path(features))
    if corrections is not None:
        from xfeat.featurize.cache.corrections import correct_cache

        cache = correct_cache(cache, Path(corrections))
    if pooling is None:
        return cache
    from xfeat.head.data.pooling import chosen_pooling

    return chosen_pooling(cache, pooling)


def _target(positive: str | None, sensitivity: float | None) -> TargetSpec | None:
    if positive is None:
        if sensitivity is not None:
            raise SpecError("--target-sensitivity needs --positive CLASS")
        return None
    given = {} if sensitivity is None else {"target_sensitivity": sensitivity}
    return spec_from(TargetSpec, {"positive": positive, **given})


def _trackers(mlflow: str | None, tensorboard: StrPath | None, runs: StrPath) -> Sequence[Tracker]:
    from xfeat.head.tracking.backends import open_trackers

    folder = None if tensorboard is None else Path(tensorboard or Path(runs) / "tensorboard")
    return open_trackers(mlflow=mlflow, tensorboard=folder)
