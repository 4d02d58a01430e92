"""The command ``xexport bench``."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import xfeat
from xfeat.export.cli.options import cuda_graphs_option
from xfeat.export.specs import DEFAULT_MODEL, PROVIDERS, BenchSpec
from xfeat.featurize.console import NOT_NEGATIVE, PATH, Printed, comma_list, json_option, progress_bars, spec_option
from xfeat.featurize.text import aligned

if TYPE_CHECKING:
    from xfeat.export.bench import Speed

_BATCHES = ",".join(map(str, BenchSpec.batches))


_option = partial(spec_option, BenchSpec)


@click.command()
@click.argument("models", nargs=-1, type=PATH, metavar="[MODEL]...")
@click.option("--run", type=PATH, help="Run whose torch model is timed for comparison.")
@click.option("--batch", "batches", default=_BATCHES, metavar="A,B", help="Images per call.")
@click.option(
    "--threads",
    metavar="A,B",
    help="Threads of the network; on a GPU only the largest number is used.  [default: 1 and all cores]",
)
@_option("seconds", NOT_NEGATIVE, "Duration of each measurement.")
@click.option(
    "--provider",
    "providers",
    multiple=True,
    type=click.Choice(PROVIDERS),
    help="Can be given twice. A named provider has to run the whole network.  [default: all that are available]",
)
@cuda_graphs_option
@_option("spin", bool, "Threads spin while they wait for one another (onnxruntime's default), or sleep (as in xserve).")
@json_option
def bench(models: tuple[Path, ...], run: Path | None, batches: str, threads: str | None, **settings: Any) -> Printed:
    """Measure the speed of models: latency and images per second, by provider, batch size and threads.

    Without MODEL: model.onnx. Models take turns. The last columns are a model's images per second divided by those of
    eager torch (with --run) and of the first MODEL (if there are several).
    """
    from xfeat.featurize.system.cores import cores

    settings["batches"] = _numbers(batches, "--batch")
    settings["threads"] = _numbers(threads, "--threads") if threads else tuple(sorted({1, cores()}))
    with progress_bars() as progress:
        rows = xfeat.bench(models or [DEFAULT_MODEL], run, progress=progress, **settings)
    return {"rows": [asdict(row) for row in rows]}, _speeds(rows)


def _numbers(text: str, option: str) -> tuple[int, ...]:
    parts = comma_list(text) or []
    if not all(part.isdecimal() for part in parts):
        raise click.BadParameter(f"{text}: expected integers from 1, separated by commas", param_hint=option)
    return tuple(int(part) for part in parts)


def _speeds(rows: list[Speed]) -> list[str]:
    figures = ("p50 ms", "p95 ms", "p99 ms", "images/s")
    table = [["model", "provider", "threads", "batch", *figures, "× torch", "× first"]]
    for row in rows:
        measured = (row.p50_ms, row.p95_ms, row.p99_ms, row.images_per_second)
        setting = [row.what, row.provider + "+graph" * row.cuda_graph, str(row.threads), str(row.batch)]
        ratios = [_times(row.against_torch), _times(row.against_first)]
        table.append([*setting, *(f"{value:.1f}" for value in measured), *ratios])
    return aligned(table, left=(0, 1))


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"
