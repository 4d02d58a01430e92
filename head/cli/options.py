"""Options shared by all commands that train. No heavy imports, so that --help is fast."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xfeat.featurize.console import default_of
from xfeat.featurize.specs import DEFAULT_CACHE, POOLINGS
from xfeat.head.specs import CLASS_WEIGHTS, DEFAULT_RUNS, SCHEDULES, HeadSpec, MemorySpec, TrainSpec

if TYPE_CHECKING:
    from xfeat.featurize.cache.reader import FeatureCache
    from xfeat.head.tracking.tracker import Tracker

# Imported by the worker process while the main process imports torch.
WORKER_MODULES = (
    "xfeat.head.evaluation.assess",
    "xfeat.head.reports.plots",
    "sklearn.metrics",
    "sklearn.calibration",
    "scipy.optimize",
    "jinja2",
)

_HEAD = ("hidden", "dropout", "feature_dropout")


def features_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--features``, the cache."""
    return click.option(
        "--features",
        type=click.Path(path_type=Path),
        default=DEFAULT_CACHE,
        show_default=True,
        help="Cache to train on.",
    )(command)


def runs_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--runs``, the folder of all runs."""
    return click.option(
        "--runs", type=click.Path(path_type=Path), default=DEFAULT_RUNS, show_default=True, help="Folder of all runs."
    )(command)


def pooling_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--pooling``, for :func:`open_cache`."""
    return click.option(
        "--pooling",
        type=click.Choice(POOLINGS),
        help="Features that the head uses; a multilevel cache also holds those of final.  [default: the cache's]",
    )(command)


def open_cache(file: Path, pooling: str | None) -> FeatureCache:
    """Open the cache of :func:`features_option` with the features of :func:`pooling_option`.

    Raises:
        CacheError: if it is missing or damaged.
        MismatchError: if it does not hold these features.
    """
    from xfeat.featurize.cache.reader import FeatureCache

    cache = FeatureCache.open(file)
    from xfeat.head.data.pooling import chosen_pooling

    return cache if pooling is None else chosen_pooling(cache, pooling)


def ensemble_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--ensemble``, as ``members``."""
    return click.option(
        "--ensemble",
        "members",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        metavar="N",
        help="Train N heads, each holding out a different part of the training images, and average them into one.",
    )(command)


def tracking_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--mlflow`` and ``--tensorboard``, for :func:`open_trackers_of`."""
    command = click.option(
        "--tensorboard",
        type=click.Path(),
        is_flag=False,
        flag_value="",
        metavar="[DIR]",
        help="Also write TensorBoard event files.  [default of DIR: tensorboard in the folder of all runs]",
    )(command)
    return click.option(
        "--mlflow", metavar="URI", help="Also record in MLflow, on a server or in a store such as sqlite:///mlflow.db."
    )(command)


def open_trackers_of(mlflow: str | None, tensorboard: str | None, runs: Path = Path(DEFAULT_RUNS)) -> list[Tracker]:
    """Open the trackers of :func:`tracking_options`.

    Raises:
        XfeatError: see :func:`xfeat.head.tracking.backends.open_trackers`.
    """
    from xfeat.head.tracking.backends import open_trackers

    folder = None if tensorboard is None else Path(tensorboard) if tensorboard else runs / "tensorboard"
    return open_trackers(mlflow=mlflow, tensorboard=folder)


def memory_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--memory-mb``, the field of :class:`MemorySpec`."""
    return click.option(
        "--memory-mb",
        type=float,
        default=default_of(MemorySpec, "memory_mb"),
        show_default=True,
        metavar="MB",
        help="Features larger than this, as float32, stay on the disk and are read in blocks.",
    )(command)


def _widths(ctx: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
    if text in ("", "linear", "none"):
        return ()
    try:
        return tuple(int(width) for width in text.split(","))
    except ValueError as error:
        raise click.BadParameter("widths separated by commas, such as 512,128, or linear") from error


def _spec_option(spec: type[Any], name: str, kind: Any, text: str) -> Callable[..., Any]:
    return click.option(
        f"--{name.replace('_', '-')}", name, type=kind, default=default_of(spec, name), show_default=True, help=text
    )


_OPTIONS = [
    _spec_option(TrainSpec, "epochs", int, "Maximum number of passes over the training images."),
    _spec_option(TrainSpec, "lr", float, "Adam's learning rate."),
    _spec_option(TrainSpec, "schedule", click.Choice(SCHEDULES), "cosine lowers the learning rate to 0."),
    _spec_option(TrainSpec, "batch_size", int, "Rows per step."),
    _spec_option(TrainSpec, "weight_decay", float, "Adam's L2 penalty."),
    click.option(
        "--hidden",
        default=",".join(map(str, default_of(HeadSpec, "hidden"))),
        show_default=True,
        callback=_widths,
        help="Widths of the hidden layers, or linear for none.",
    ),
    _spec_option(HeadSpec, "dropout", float, "Dropout before the last layer."),
    _spec_option(HeadSpec, "feature_dropout", float, "Dropout of the features, before the first layer."),
    _spec_option(
        TrainSpec,
        "class_weight",
        click.Choice(CLASS_WEIGHTS),
        "balanced weights classes by the inverse of their frequency.",
    ),
    _spec_option(TrainSpec, "label_smoothing", float, "Part of the target spread evenly over all classes."),
    _spec_option(TrainSpec, "focal_gamma", float, "Exponent of the focal loss; 0 is cross entropy."),
    _spec_option(
        TrainSpec, "patience", int, "Stop after this number of epochs without a lower validation loss; 0: never."
    ),
    _spec_option(TrainSpec, "average", float, "Decay per step of a moving average of the weights; 0: off."),
    _spec_option(TrainSpec, "seed", int, "Random seed; the same seed gives the same bits."),
]


def head_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add one option per field of :class:`HeadSpec` and :class:`TrainSpec`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def head_specs(settings: dict[str, Any]) -> tuple[HeadSpec, TrainSpec]:
    """Build the specs from the values of :func:`head_options`.

    Raises:
        SpecError: if a value is out of range.
    """
    head = HeadSpec(**{name: settings[name] for name in _HEAD})
    return head, TrainSpec(**{name: value for name, value in settings.items() if name not in _HEAD})
