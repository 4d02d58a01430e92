"""``xfeat info`` and ``xfeat verify``: what a cache contains, and whether it is intact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

import xfeat
from xfeat.featurize.console import PATH, Printed, json_option
from xfeat.featurize.datasets.image_files import describe_left_out
from xfeat.featurize.specs import DEFAULT_CACHE
from xfeat.featurize.text import count_lines

if TYPE_CHECKING:
    from xfeat.featurize.cache.reader import FeatureCache

_file_argument = click.argument("file", type=PATH, default=DEFAULT_CACHE)


@click.command()
@_file_argument
@json_option
def info(file: Path) -> Printed:
    """Show what a cache contains: settings, counts per split and class, skipped files."""
    from xfeat.featurize.columns.summary import summarize

    cache = xfeat.open_cache(file, check=False)
    facts = {
        "file": str(file),
        "schema_version": cache.schema_version,
        "images": len(cache),
        "features": cache.features.shape[-1],
        "views": cache.spec.views,
        "spec": cache.spec.to_dict(),
        "weights": cache.weights_path,
        "fingerprint": cache.spec.fingerprint,
        "class_names": list(cache.class_names),
        "counts": cache.counts,
        "groups": len(set(cache.columns.group) - {""}),
        "columns": {name: summarize(cache.extra[name], cache.columns.group) for name in cache.extra},
        "truncated": int(cache.columns.truncated.sum()),
        "skipped": [row._asdict() for row in cache.skipped],
        "layout": cache.layout,
        "left_out": cache.left_out,
        "corrections": [correction._asdict() for correction in cache.corrections],
        "data_root": str(cache.images.root or cache.data_root),
        "created": cache.created,
        "versions": cache.versions,
    }
    return facts, _as_text(cache, facts["groups"])


@click.command()
@_file_argument
@json_option
def verify(file: Path) -> Printed:
    """Check that every row of a cache is finite and unchanged since it was written."""
    cache = xfeat.open_cache(file)
    facts = {"file": str(file), "images": len(cache), "ok": True}
    return facts, [f"{file}: {len(cache)} rows, all finite and unchanged"]


def _as_text(cache: FeatureCache, groups: int) -> list[str]:
    from xfeat.featurize.cache.columns import describe_corrections
    from xfeat.featurize.cache.layout import SCHEMA_VERSION
    from xfeat.featurize.columns.summary import column_lines

    root = cache.images.root or f"{cache.data_root}, where these images are no longer"
    old = f", which xfeat featurize rewrites as version {SCHEMA_VERSION}"
    lines = [
        f"{cache.path}: {len(cache)} images × {cache.features.shape[-1]} features, {cache.spec.describe()}",
        f"fingerprint {cache.spec.fingerprint}, made {cache.created} from {root}",
        f"weights {cache.weights_path}, SHA-256 {cache.spec.weights_sha256}",
        f"schema version {cache.schema_version}{old if cache.schema_version < SCHEMA_VERSION else ''}",
    ]
    lines += count_lines(cache.counts)
    if groups:
        lines.append(f"groups  {groups}")
    lines += [f"column  {line}" for line in column_lines(cache.extra, cache.columns.group, "more: see --json")]
    lines += [f"layout  {cache.layout}"] * bool(cache.layout) + describe_left_out(cache.left_out)
    lines += [f"corrections: {describe_corrections(cache.corrections)}"] * bool(cache.corrections)
    lines += [f"skipped {path}: {reason}" for path, reason in cache.skipped]
    return lines
