"""Options that several commands of ``xserve`` share. No heavy imports here."""

from __future__ import annotations

from pathlib import Path

import click

from xfeat.export.specs import DEFAULT_MODEL, MAX_THREADS

model_option = click.option(
    "--model",
    type=click.Path(path_type=Path),
    default=DEFAULT_MODEL,
    show_default=True,
    help="Model file written by xexport onnx.",
)

threads_option = click.option(
    "--threads", type=click.IntRange(1, MAX_THREADS), help="CPU threads for the network.  [default: number of cores]"
)
