"""Options that several commands of ``xserve`` share. No heavy imports here."""

from __future__ import annotations

import click

from xfeat.export.cli.options import device_option, require_signature_option
from xfeat.export.specs import DEFAULT_MODEL, MAX_THREADS
from xfeat.featurize.console import COUNT, PATH, combined

THREADS = click.IntRange(1, MAX_THREADS)

allow_unverified_option = click.option(
    "--allow-unverified", is_flag=True, help="Use a model that does not match the certificate beside it."
)
model_option = click.option("--model", type=PATH, default=DEFAULT_MODEL, help="Model file written by xexport onnx.")
predictor_options = combined(
    device_option("auto"),
    click.option("--threads", type=THREADS, help="CPU threads for the network.  [default: number of cores]"),
    click.option(
        "--batch-size", type=COUNT, help="Images per call of the network.  [default: 8 on a CPU, 64 on a GPU]"
    ),
    allow_unverified_option,
    require_signature_option,
)
"""How a model is opened, for commands that classify images."""
