"""``xfeat featurize``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import xfeat
from xfeat.featurize import specs
from xfeat.featurize.cli.request_options import number_or_auto, request_options
from xfeat.featurize.console import (
    COUNT,
    DATA,
    PATH,
    Printed,
    comma_list,
    corrections_option,
    json_option,
    layout_option,
    progress_bars,
    table_options,
    warn,
)
from xfeat.featurize.text import first_ten

if TYPE_CHECKING:
    from xfeat.featurize.cached_features import CachedFeatures


@click.command()
@click.argument("data", type=DATA)
@click.option("-o", "--output", type=PATH, default=specs.DEFAULT_CACHE, help="Cache to write or bring up to date.")
@request_options
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
    callback=number_or_auto("a positive integer", "auto", least=1),
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
@table_options
@corrections_option
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

    DATA is a folder (train|valid|test/CLASS/..., CLASS/..., or images without classes), a zip or tar archive of such a
    folder, a parquet table of images, shards of either ('shards-{000..009}.tar'), any of these at an address (s3://,
    gs://, https://), or a CSV file with the columns path,label[,split][,group]. A second run computes only what has
    changed; a stopped run resumes.
    """
    with progress_bars() as progress:
        cache = xfeat.extract(
            *(data, output),
            classes=comma_list(classes),
            groups=groups,
            layout=layout,
            on_error=on_error,
            progress=progress,
            **settings,
        )
    return _as_json(cache), _as_text(cache)


def _as_json(cache: CachedFeatures) -> dict[str, Any]:
    done = cache.extraction
    assert done is not None
    return {
        "output": str(done.output),
        "backbone": cache.spec.backbone,
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
        "fingerprint": cache.spec.fingerprint,
        "columns": {name: cache.extra[name].kind for name in cache.extra},
        "layout": cache.layout,
        "left_out": cache.left_out,
        "corrections": dict(Counter(correction.action for correction in cache.corrections)),
    }


def _as_text(cache: CachedFeatures) -> list[str]:
    from xfeat.featurize.cache.columns import describe_corrections

    done = cache.extraction
    assert done is not None
    truncated = [f"{path} is truncated; the part that is there was used" for path in done.truncated]
    skipped = [f"skipped {path}: {reason}" for path, reason in done.skipped]
    warn(first_ten(truncated, "more truncated images"))
    warn(first_ten(skipped, f"more: see xfeat info {done.output}"))
    per_second = f"{done.images_per_second:.{0 if done.images_per_second >= 10 else 1}f}"
    rate = f" at {per_second} images/s ({done.engine})" if done.computed else ""
    changes = "".join(f", {number} {kind}" for kind, number in done.changes._asdict().items() if number)
    rehashed = f" ({done.rehashed} read again and unchanged)" if done.rehashed else ""
    state = "is up to date" if done.up_to_date else "written"
    corrected = describe_corrections(cache.corrections)
    return [
        f"{done.output} {state}: {done.images} images, {cache.spec.describe()}",
        f"computed {done.computed}{rate}, reused {done.reused}{rehashed}, skipped {len(done.skipped)}{changes}",
        *([f"corrections: {corrected}"] if corrected else []),
    ]
