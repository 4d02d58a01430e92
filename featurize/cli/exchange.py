"""``xfeat dump`` and ``xfeat load``: a cache as a table, and a table as a cache."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import xfeat
from xfeat.featurize.cli.request_options import request_options
from xfeat.featurize.console import DATA, PATH, Printed, json_option, progress_bars
from xfeat.featurize.specs import DEFAULT_CACHE
from xfeat.featurize.text import listed

if TYPE_CHECKING:
    from xfeat.featurize.exchange.load import Loaded


@click.command()
@click.argument("file", type=PATH)
@click.argument("table", type=PATH)
@json_option
def dump(file: Path, table: Path) -> Printed:
    """Write the cache FILE as a table for other programs.

    TABLE ends in .parquet, .npz or .csv, and has a row per image: path, label, split, group, SHA-256 and size of the
    file, further columns, and the features. xfeat load makes the same cache of it. Of x.csv, the settings are in
    x.csv.json.
    """
    columns = xfeat.dump(file, table)
    return {"output": str(table), "columns": columns}, [f"{table} written: {listed(columns)}, and the features"]


@click.command()
@click.argument("table", type=PATH)
@click.option("-o", "--output", type=PATH, default=DEFAULT_CACHE, help="Cache to write.")
@click.option("--columns", metavar="NAME=COLUMN,...", help="What the columns are: path=filename,label=finding.")
@click.option("--name", help="Of the features, where no --backbone is named.  [default: the name of TABLE]")
@click.option(
    "--data",
    type=DATA,
    metavar="DIR",
    help="Images that the paths in TABLE are relative to.  [default: the folder of TABLE]",
)
@click.option(
    "--no-check",
    "check",
    flag_value=False,
    default=True,
    show_default=False,
    help="Do not compute the features of a few images with the --backbone, to compare them.",
)
@click.option("--force", is_flag=True, help="Replace an existing cache.")
@request_options
@json_option
def load(table: Path, output: Path, **settings: Any) -> Printed:
    """Make a cache of the features in TABLE, which were computed elsewhere, or by xfeat dump.

    TABLE is a .parquet, .npz or .csv file with a row per image: path, label, split and group if there are, and the
    features in the columns f0, f1, ... or as lists in one column features. Without --backbone, heads can be trained on
    them; to export a model, name the encoder that computed them, with the settings of its input.
    """
    with progress_bars() as progress:
        done = xfeat.load(table, output, progress=progress, **settings)
    return _as_json(done), _as_text(done)


def _as_json(done: Loaded) -> dict[str, Any]:
    cache = done.cache
    return {
        "output": str(cache.path),
        "images": len(cache),
        "features": cache.features.shape[-1],
        "class_names": list(cache.class_names),
        "columns": list(cache.extra),
        "spec": cache.spec.to_dict(),
        "fingerprint": cache.spec.fingerprint,
        "restored": done.restored,
        "compared": done.compared,
        "difference": done.difference,
    }


def _as_text(done: Loaded) -> list[str]:
    cache = done.cache
    lines = [f"{cache.path} written: {len(cache)} images, {cache.features.shape[-1]} features, {cache.spec.describe()}"]
    if done.restored:
        lines.append("the settings are those of the cache that was dumped")
    elif done.compared:
        lines.append(f"{done.compared} images computed again: the largest difference is {done.difference:.1g}")
    return lines
