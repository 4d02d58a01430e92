"""The public functions of this package: what ``import xfeat`` offers, and what its commands call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.errors import ArgumentError, SpecError
from xfeat.featurize.keyword_settings import keyword_settings, spec_from
from xfeat.featurize.public import Progress, StrPath, steps_of
from xfeat.featurize.specs import DEFAULT_CACHE
from xfeat.head.specs import DEFAULT_RUNS, SORTS, CrossvalSpec, HeadSpec, MemorySpec, TargetSpec, TrainSpec

if TYPE_CHECKING:
    from xfeat.head.compare.comparison import Comparison
    from xfeat.head.crossval.run import SavedCrossval
    from xfeat.head.evaluate import Evaluation
    from xfeat.head.evaluation.operating_point import ChosenThreshold
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
    calibrate: bool = True,
    members: int = 1,
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
        calibrate: fit a temperature on the validation images.
        members: heads of an ensemble, each holding out a different part, averaged into one.
        pooling: features that the head uses; by default the cache's.
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
    if threshold_from is None or target_sensitivity is not None:
        target = _target(positive, target_sensitivity)
    open_trackers = _trackers_opener(mlflow, tensorboard, runs)
    from xfeat.head.reports.worker import Worker

    with Worker(*_WORKER_MODULES) as worker:
        cache = _open_features(features, pooling)
        if threshold_from is not None:
            from xfeat.head.crossval.stored import threshold_from as threshold_of

            target = threshold_of(str(threshold_from), cache, Path(runs), positive)
        from xfeat.head.runs.reader import new_run_name, read_history
        from xfeat.head.tracking.backends import tracked
        from xfeat.head.tracking.tracker import cache_parameters, final_metrics, head_parameters
        from xfeat.head.train import TrainOptions, train_run

        trackers, name = open_trackers(), name or new_run_name()
        parameters = {**head_parameters(head, training), "ensemble": members, **cache_parameters(cache)}
        with tracked(trackers, name, parameters) as tracking:

            def after_epoch(record: EpochRecord) -> None:
                if progress is not None:
                    progress("training", record.epoch, training.epochs * members)
                tracking.begin()
                if members == 1:
                    tracking.epoch(record)

            options = TrainOptions(
                target=target, calibrate=calibrate, memory=memory, members=members, progress=after_epoch, call=worker
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
    baselines: bool = False,
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
        baselines: also test scikit-learn's classifiers with default settings on the same folds.
        pooling: features that the head uses; by default the cache's.
        mlflow: server or store to record in as well.
        tensorboard: folder for event files; empty for the one in ``runs``.
        progress: called after each head, and after each fit of a baseline.

    Returns:
        The folder, and the content of its crossval.json.

    Raises:
        XfeatError: as :func:`xfeat.head.crossval.run.crossval_run` says.
    """
    target, open_trackers = _target(positive, target_sensitivity), _trackers_opener(mlflow, tensorboard, runs)
    cache = _open_features(features, pooling)
    from xfeat.head.reports.worker import Worker

    with Worker(*_WORKER_MODULES) as worker:
        from xfeat.head.crossval.run import CrossvalOptions, crossval_run

        def report(activity: str, unit: str) -> AbstractContextManager[Callable[[int, int], None]]:
            return nullcontext(steps_of(progress, activity) or _ignore)

        options = CrossvalOptions(
            name=name,
            target=target,
            memory=memory,
            baselines=baselines,
            open_trackers=open_trackers,
            progress=report,
            call=worker,
        )
        return crossval_run(cache, head, training, plan, runs=Path(runs), options=options)


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
    tried = {key: axis for key in SETTINGS if (axis := given.get(key) or DEFAULT_AXES.get(key))}
    choices = {"seeds": seeds, "first_seed": first_seed, "trials": trials, "sampler": sampler, "rank": rank}
    spec, memory = spec_from(SweepSpec, {"axes": tried, **choices}), spec_from(MemorySpec, {"memory_mb": memory_mb})
    cache = _open_features(features)
    trackers = _trackers_opener(mlflow, tensorboard, runs)()
    from xfeat.head.sweep.run import sweep_run
    from xfeat.head.sweep.runner import Sweep

    work = Sweep(cache, spec, runs=Path(runs), name=name, memory=memory, device=device)
    return sweep_run(work, trackers, time_limit_s=time_limit, progress=steps_of(progress, "sweep") or _ignore)


def evaluate(
    run: StrPath | Run,
    data: Features,
    *,
    features: StrPath | None = None,
    groups: str | None = None,
    layout: str | None = None,
    weights: StrPath | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Evaluation:
    """Test a run on an external data set and show the drop from its own test images: ``xhead eval``.

    All labelled images are used; the split is ignored. Classes are matched by name.

    Args:
        run: the run, or its folder.
        data: a cache made with the settings of the run, or images in any layout of :func:`xfeat.extract`, which are
            featurized with these settings.
        features: cache for the features of images, used again by the next call; by default NAME.features.h5.
        groups: CSV file or regular expression for the patients or series.
        layout: ``splits``, ``classes`` or ``flat``; by default what the folders allow.
        weights: the backbone's weights file, if it has moved.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``, for featurizing.
        progress: called as images are featurized.

    Returns:
        Metrics on these images beside those on the run's own test images.

    Raises:
        XfeatError: as :func:`xfeat.head.evaluate.evaluate_run` says.
    """
    opened = _open_run(run)
    if not isinstance(data, FeatureCache) and Path(data).suffix.lower() not in (".h5", ".hdf5"):
        from xfeat.featurize.datasets.layouts import open_dataset
        from xfeat.featurize.engines import open_engine
        from xfeat.featurize.pipeline.compute import RunOptions
        from xfeat.featurize.pipeline.extract import extract_features
        from xfeat.featurize.pipeline.grey_range import warn_of_other_range
        from xfeat.head.evaluate import check_classes_match
        from xfeat.head.runs.inputs import weights_of

        dataset = open_dataset(data, groups=groups, layout=layout)
        check_classes_match(opened, dataset, Path(data))
        spec, found = opened.feature_spec, weights_of(opened, None if weights is None else Path(weights))
        warn_of_other_range(dataset, spec)
        output = Path(features or f"{Path(data).resolve().stem}.features.h5")
        engine = partial(open_engine, spec, found, device=device)
        steps = steps_of(progress, "featurizing")
        extract_features(dataset, spec, found, output, RunOptions(open_engine=engine, progress=steps))
        data = output
    cache = _open_features(data)
    from xfeat.head.evaluate import evaluate_run

    return evaluate_run(opened, cache)


def compare(
    runs: Sequence[StrPath | Run] = (),
    folder: StrPath = DEFAULT_RUNS,
    *,
    sort: str = SORTS[0],
    baselines: bool = False,
    features: StrPath | None = None,
    csv_file: StrPath | None = None,
    html_file: StrPath | None = None,
) -> Comparison:
    """Compare runs: their settings, their metrics, and whether a difference is larger than chance: ``xhead compare``.

    Each run is compared with the first by McNemar's exact test on the images that both were tested on, and by a
    bootstrap over patients if patients have several images.

    Args:
        runs: runs and cross-validations: their folders, or their names in ``folder``; by default all in it.
        folder: of all runs.
        sort: the metric whose best comes first.
        baselines: also fit scikit-learn's classifiers, tuned, to the first run's data.
        features: the cache that runs were trained on; by default that of each run.
        csv_file: table to write.
        html_file: page to write.

    Returns:
        An entry per run, the best first, and the cross-validations.

    Raises:
        SpecError: if there is no such metric.
        RunError: if there is no run, or one is damaged.
        OutputError: if a file cannot be written.
    """
    from xfeat.head.compare.command import compare_runs
    from xfeat.head.runs.reader import Run

    if sort not in SORTS:
        raise SpecError("unknown metric", expected=", ".join(SORTS), found=repr(sort))
    return compare_runs(
        [each if isinstance(each, Run) else Path(each) for each in runs],
        Path(folder),
        sort=sort,
        baselines=baselines,
        features=None if features is None else Path(features),
        csv_file=None if csv_file is None else Path(csv_file),
        html_file=None if html_file is None else Path(html_file),
    )


def open_run(folder: StrPath = f"{DEFAULT_RUNS}/latest") -> Run:
    """Read a run folder.

    Args:
        folder: of the run.

    Returns:
        Its settings, metrics, predictions and weights.

    Raises:
        RunError: if there is no run, or it is damaged or of another version.
        MismatchError: if its features are computed in a way that this version does not support.
    """
    from xfeat.head.runs.reader import open_run as read

    return read(folder)


def _open_run(run: StrPath | Run) -> Run:
    from xfeat.head.runs.reader import Run

    return run if isinstance(run, Run) else open_run(run)


def _open_features(features: Features, pooling: str | None = None) -> FeatureCache:
    cache = features if isinstance(features, FeatureCache) else FeatureCache.open(features)
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


def _trackers_opener(mlflow: str | None, tensorboard: StrPath | None, runs: StrPath) -> Callable[[], Sequence[Tracker]]:
    from xfeat.head.tracking.backends import open_trackers

    folder = None if tensorboard is None else Path(tensorboard or Path(runs) / "tensorboard")
    return partial(open_trackers, mlflow=mlflow, tensorboard=folder)


def _ignore(done: int, total: int) -> None:
    """Take the place of a progress callback."""
