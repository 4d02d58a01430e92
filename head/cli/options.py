"""Options shared by all commands that train. No heavy imports, so that --help is fast."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import click

from xfeat.featurize.console import COUNT, PATH, combined, corrections_option, spec_option
from xfeat.featurize.specs import DEFAULT_CACHE, POOLINGS
from xfeat.head.specs import (
    CLASS_WEIGHTS,
    DEFAULT_RUNS,
    SCHEDULES,
    CrossvalSpec,
    HeadSpec,
    MemorySpec,
    TargetSpec,
    TrainSpec,
)
from xfeat.head.sweep.space import parse_widths

features_option = combined(
    click.option("--features", type=PATH, default=DEFAULT_CACHE, help="Cache to train on."), corrections_option
)
runs_option = click.option("--runs", type=PATH, default=DEFAULT_RUNS, help="Folder of all runs.")
memory_option = spec_option(
    MemorySpec,
    "memory_mb",
    float,
    "Features larger than this, as float32, stay on the disk and are read in blocks.",
    metavar="MB",
)
target_options = combined(
    click.option(
        "--positive", metavar="CLASS", help="The class that must not be missed: a threshold is chosen for it."
    ),
    click.option(
        "--target-sensitivity",
        type=float,
        metavar="P",
        help="Sensitivity that the threshold must reach: train chooses it on the validation images, crossval on "
        f"out-of-fold predictions of all images.  [default: {TargetSpec.target_sensitivity}; needs --positive]",
    ),
)
bins_option = click.option(
    "--bins",
    multiple=True,
    callback=lambda ctx, parameter, texts: _bins(texts),
    metavar="COLUMN=N,N,...",
    help="Divide a further column of numbers at these values, such as age=18,40,65, for the figures of subgroups. "
    "Repeatable.  [default: quartiles]",
)
tracking_options = combined(
    click.option(
        "--mlflow", metavar="URI", help="Also record in MLflow, on a server or in a store such as sqlite:///mlflow.db."
    ),
    click.option(
        "--tensorboard",
        type=click.Path(),
        is_flag=False,
        flag_value="",
        metavar="[DIR]",
        help="Also write TensorBoard event files.  [default of DIR: tensorboard in the folder of all runs]",
    ),
)
run_options = combined(
    spec_option(
        CrossvalSpec,
        "members",
        COUNT,
        "Train N heads, each holding out a different part of the training images, and average them into one.",
        flag="--ensemble",
        metavar="N",
    ),
    click.option(
        "--pooling",
        type=click.Choice(POOLINGS),
        help="Features that the head uses; a multilevel cache also holds those of final.  [default: the cache's]",
    ),
    memory_option,
    tracking_options,
)


def _bins(texts: Sequence[str]) -> dict[str, list[float]]:
    try:
        parts = [text.rpartition("=") for text in texts]
        return {name: [float(end) for end in ends.split(",")] for name, _, ends in parts}
    except ValueError as error:
        raise click.BadParameter("a column and numbers, such as age=18,40,65") from error


def _widths(ctx: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        return parse_widths(text)
    except ValueError as error:
        raise click.BadParameter("widths separated by commas, such as 512,128, or linear") from error


_head, _train = partial(spec_option, HeadSpec), partial(spec_option, TrainSpec)
head_options = combined(
    _train("epochs", int, "Maximum number of passes over the training images."),
    _train("lr", float, "Adam's learning rate."),
    _train("schedule", click.Choice(SCHEDULES), "cosine lowers the learning rate to 0."),
    _train("batch_size", int, "Rows per step."),
    _train("weight_decay", float, "Adam's L2 penalty."),
    _head(
        "hidden",
        str,
        "Widths of the hidden layers, or linear for none.",
        default=",".join(map(str, HeadSpec.hidden)),
        callback=_widths,
    ),
    _head("dropout", float, "Dropout before the last layer."),
    _head("feature_dropout", float, "Dropout of the features, before the first layer."),
    _train("class_weight", click.Choice(CLASS_WEIGHTS), "balanced weights classes by the inverse of their frequency."),
    _train("label_smoothing", float, "Part of the target spread evenly over all classes."),
    _train("focal_gamma", float, "Exponent of the focal loss; 0 is cross entropy."),
    _train("patience", int, "Stop after this number of epochs without a lower validation loss; 0: never."),
    _train("average", float, "Decay per step of a moving average of the weights; 0: off."),
    _train("seed", int, "Random seed; the same seed gives the same bits."),
)
