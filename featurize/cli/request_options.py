"""The options that say what features are: those of ``xfeat featurize`` and ``xfeat load``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import click

from xfeat.featurize import specs
from xfeat.featurize.backbones.registry import BACKBONES, FORMS
from xfeat.featurize.console import PATH, combined, spec_option

T = TypeVar("T")

_request_option = partial(spec_option, specs.FeatureRequest)


def number_or_auto(what: str, auto: T, *, least: int = 0) -> Callable[..., int | T | None]:
    """Return what reads an option that is a whole number from ``least`` on, or auto, which means ``auto``."""

    def read(_context: click.Context, _option: click.Parameter, text: str | None) -> int | T | None:
        if text in (None, "auto"):
            return auto if text else None
        if not text.isdecimal() or int(text) < least:
            raise click.BadParameter(f"{text!r} is neither {what} nor auto")
        return int(text)

    return read


def per_channel(_context: click.Context, _option: click.Parameter, text: str | None) -> specs.Triple | None:
    """Read one number for all channels, or three."""
    if text is None:
        return None
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, 3):
        raise click.BadParameter(f"{text!r} is neither a number nor three with commas between them")
    red, green, blue = values * (3 // len(values))
    return red, green, blue


request_options = combined(
    _request_option(
        "backbone",
        str,
        "auto: the backbone of an existing output; else efficientnet-b0, or efficientnet-lite0 if the weights of b0 "
        f"cannot be downloaded. Others: {', '.join(BACKBONES)}. Any encoder: {FORMS}.",
        metavar="NAME|FILE",
    ),
    _request_option(
        "weights",
        PATH,
        "Weights file in efficientnet_pytorch's format; with --backbone auto and no output yet, of efficientnet-b0. Of "
        "another encoder: its ONNX file; for timm:NAME also a checkpoint.",
    ),
    _request_option(
        "size", int, "Side of the network's input in pixels.  [default: the backbone's own, like the next six]"
    ),
    _request_option(
        "resize", click.Choice(specs.RESIZES), "squash changes the aspect ratio; crop resizes the centred square only."
    ),
    _request_option(
        "crop",
        float,
        "Share of each side of the image that is cut off first, such as 0.12 against frames and burnt-in letters.",
    ),
    _request_option("interpolation", click.Choice(specs.INTERPOLATIONS), "Both are antialiased, as Pillow does it."),
    _request_option(
        "mean",
        str,
        "Subtracted from the pixels, which are scaled to 0..1; one number stands for three.",
        metavar="R,G,B",
        callback=per_channel,
    ),
    _request_option("std", str, "The pixels are divided by it afterwards.", metavar="R,G,B", callback=per_channel),
    _request_option(
        "pooling",
        click.Choice(specs.POOLINGS),
        "multilevel appends the pooled stages 3 to 7; cls and mean are for encoders whose output is tokens.",
    ),
    _request_option(
        "views",
        click.IntRange(1, specs.MAX_VIEWS),
        "Views of each image: the clean one, then seeded crops, rotations, flips and brightness.",
    ),
    _request_option(
        "normalize",
        click.Choice(list(specs.NORMALIZATIONS)),
        "Short for --mean and --std: half is 0.5 for both, as in the tutorial; imagenet is ImageNet's.",
    ),
    _request_option(
        "grey_bits",
        str,
        "Range of images with 16 bits per channel: 12 makes 4095 white. auto: the bits that their levels need, once "
        "for all images.  [default: auto]",
        metavar="8..16|auto",
        callback=number_or_auto("a number of bits", None),
    ),
    _request_option(
        "frames", click.Choice(specs.FRAMES), "Which picture of a file with several pages or frames is read, if any."
    ),
    _request_option("dtype", click.Choice(specs.DTYPES), "Data type of the stored features."),
    _request_option(
        "precision",
        click.Choice(specs.PRECISIONS),
        "Of the network's arithmetic. The exported model computes in float32; xexport checks the difference.",
    ),
)
