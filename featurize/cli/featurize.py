"""``xfeat featurize``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from xfeat.featurize import specs
from xfeat.featurize.backbones.registry import BACKBONES
from xfeat.featurize.console import (
    COUNT,
    PATH,
    Printed,
    comma_list,
    json_option,
    layout_option,
    pop_spec,
    progress_bar,
    spec_option,
    warn,
)
from xfeat.featurize.text import first_ten

if TYPE_CHECKING:
    from xfeat.featurize.datasets.layouts import Dataset
    from xfeat.featurize.pipeline.extract import Extraction

_request_option = partial(spec_option, specs.FeatureRequest)


def _batch_size(_context: click.Context, _option: click.Parameter, text: str | None) -> int | Literal["auto"] | None:
    if text is None or text == "auto":
        return "auto" if text else None
    if not text.isdecimal() or int(text) < 1:
        raise click.BadParameter(f"{text!r} is neither a positive integer nor auto")
    return int(text)


def _grey_bits(_context: click.Context, _option: click.Parameter, text: str | None) -> int | None:
    if text in (None, "auto"):
        return None
    if not text.isdecimal():
        raise click.BadParameter(f"{text!r} is neither a number of bits nor auto")
    return int(text)


@click.command()
@click.argument("data", type=PATH)
@click.option("-o", "--output", type=PATH, default=specs.DEFAULT_CACHE, help="Cache to write or bring up to date.")
@_request_option(
    "backbone",
    click.Choice(["auto", *BACKBONES]),
    "auto: the backbone of an existing output; else efficientnet-b0, or efficientnet-lite0 if the weights of b0 cannot "
    "be downloaded. Others: " + ", ".join(BACKBONES),
    metavar="NAME",
)
@_request_option(
    "weights",
    PATH,
    "Weights file in efficientnet_pytorch's format; with --backbone auto and no output yet, of efficientnet-b0.",
)
@_request_option("size", int, "Side of the network's input in pixels.  [default: the backbone's own]")
@_request_option("pooling", click.Choice(specs.POOLINGS), "multilevel appends the pooled stages 3 to 7.")
@_request_option(
    "views",
    click.IntRange(1, specs.MAX_VIEWS),
    "Views of each image: the clean one, then seeded crops, rotations, flips and brightness.",
)
@_request_option(
    "normalize", click.Choice(list(specs.NORMALIZATIONS)), "Mean and std: 0.5 as in the tutorial, or ImageNet's."
)
@_request_option(
    "grey_bits",
    str,
    "Range of images with 16 bits per channel: 12 makes 4095 white. auto: the bits that their levels need, once for "
    "all images.  [default: auto]",
    metavar="8..16|auto",
    callback=_grey_bits,
)
@_request_option(
    "frames", click.Choice(specs.FRAMES), "Which picture of a file with several pages or frames is read, if any."
)
@_request_option("dtype", click.Choice(specs.DTYPES), "Data type of the stored features.")
@_request_option(
    "precision",
    click.Choice(specs.PRECISIONS),
    "Of the network's arithmetic. The exported model computes in float32; xexport checks the difference.",
)
@click.option(
    "--device",
    default="auto",
    help="auto, cpu, cuda or cuda:N; several GPUs with commas. Fails if the device is missing; no fallback.",
)
@click.option(
    "--engine",
    type=click.Choice(specs.ENGINES),
    default="auto",
    help="auto: torch on a GPU and for a --precision other than float32, else onnxruntime. ray: on many machines.",
)
@click.option(
    "--ray-address",
    metavar="HOST:PORT",
    help="Head of the cluster for --engine ray.  [default: RAY_ADDRESS, else this machine's cluster, else a new one]",
)
@click.option(
    "--batch-size",
    metavar="N|auto",
    callback=_batch_size,
    help="Images per call of the network; auto measures which is fastest.  [default: the engine's own]",
)
@click.option(
    "--workers",
    type=COUNT,
    help="Decoding threads or processes; with --engine ray, the most cores of the cluster to use.  "
    "[default: all cores]",
)
@click.option(
    "--decode-in",
    type=click.Choice(["auto", "threads", "processes"]),
    default="auto",
    help="auto: processes for more than 8 workers and at least 2,000 images, else threads.",
)
@click.option(
    "--on-error", type=click.Choice(["skip", "fail"]), default="skip", help="What to do with an unreadable image."
)
@click.option("--classes", metavar="A,B", help="Keep these classes only.")
@click.option(
    "--groups",
    metavar="FILE|REGEX",
    help="Patient or series of each image: a CSV with path,group, or an expression on the path.  "
    "[default: groups.csv in DATA, if there]",
)
@layout_option
@click.option("--force", is_flag=True, help="Recompute everything, and replace a cache with other settings.")
@json_option
def featurize(
    data: Path,
    output: Path,
    classes: str | None,
    groups: str | None,
    layout: str | None,
    on_error: str,
    **settings: Any,
) -> Printed:
    """Compute the features of all images in DATA.

    DATA is a folder (train|valid|test/CLASS/..., CLASS/..., or images without classes), a zip archive of such a folder,
    or a CSV file with the columns path,label[,split][,group]. A second run computes only what has changed; a stopped
    run resumes.
    """
    from xfeat.featurize.cluster.engine import RayCluster
    from xfeat.featurize.datasets.layouts import open_dataset
    from xfeat.featurize.engines import check_precision, open_engine
    from xfeat.featurize.pipeline.compute import RunOptions
    from xfeat.featurize.pipeline.extract import extract_features
    from xfeat.featurize.pipeline.grey_range import with_grey_bits
    from xfeat.featurize.pipeline.request import resolve_request

    engine, ray_address = settings.pop("engine"), settings.pop("ray_address")
    if ray_address is not None and engine != "ray":
        raise click.UsageError("--ray-address is for --engine ray")
    dataset = open_dataset(data, classes=comma_list(classes), groups=groups, layout=layout)
    request = pop_spec(specs.FeatureRequest, settings)
    check_precision(engine, request.precision)
    with progress_bar("downloading weights", "bytes") as download_progress:
        spec, weights = resolve_request(output, request, force=settings["force"], progress=download_progress)
    with progress_bar("finding the range of 16-bit images", "images") as progress:
        overall = {name: settings[name] for name in ("force", "workers")}
        spec = with_grey_bits(dataset, request, spec, output, progress=progress, **overall)
    network = {name: settings.pop(name) for name in ("device", "batch_size")}
    cluster = None
    if engine == "ray":
        cluster = RayCluster(spec=spec, weights=weights, address=ray_address, cores=settings["workers"], **network)
    with progress_bar("featurizing", "images") as progress:
        options = RunOptions(
            open_engine=partial(open_engine, spec, weights, engine=engine, **network),
            cluster=cluster,
            fail_on_error=on_error == "fail",
            progress=progress,
            **settings,
        )
        done = extract_features(dataset, spec, weights, output, options)
    return _as_json(done, spec, dataset), _as_text(done, spec)


def _as_json(done: Extraction, spec: specs.FeatureSpec, dataset: Dataset) -> dict[str, Any]:
    return {
        "output": str(done.output),
        "backbone": spec.backbone,
        "images": done.images,
        "computed": done.computed,
        "reused": done.reused,
        "rehashed": done.rehashed,
        **done.changes._asdict(),
        "skipped": len(done.skipped),
        "skipped_images": [row._asdict() for row in done.skipped],
        "truncated": len(done.truncated),
        "images_per_second": round(done.images_per_second, 2),
        "engine": done.engine,
        "up_to_date": done.up_to_date,
        "fingerprint": spec.fingerprint,
        "layout": dataset.layout,
        "left_out": dataset.left_out,
    }


def _as_text(done: Extraction, spec: specs.FeatureSpec) -> list[str]:
    truncated = [f"{path} is truncated; the part that is there was used" for path in done.truncated]
    skipped = [f"skipped {path}: {reason}" for path, reason in done.skipped]
    warn(first_ten(truncated, "more truncated images"))
    warn(first_ten(skipped, f"more: see xfeat info {done.output}"))
    per_second = f"{done.images_per_second:.{0 if done.images_per_second >= 10 else 1}f}"
    rate = f" at {per_second} images/s ({done.engine})" if done.computed else ""
    changes = "".join(f", {number} {kind}" for kind, number in done.changes._asdict().items() if number)
    rehashed = f" ({done.rehashed} read again and unchanged)" if done.rehashed else ""
    state = "is up to date" if done.up_to_date else "written"
    return [
        f"{done.output} {state}: {done.images} images, {spec.describe()}",
        f"computed {done.computed}{rate}, reused {done.reused}{rehashed}, skipped {len(done.skipped)}{changes}",
    ]
