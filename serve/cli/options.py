"""Options that several commands of ``xserve`` share. No heavy imports here."""

from __future__ import annotations

import click

from xfeat.export.specs import DEFAULT_MODEL, MAX_THREADS
from xfeat.featurize.console import PATH

THREADS = click.IntRange(1, MAX_THREADS)

allow_unverified_option = click.option(
    "--allow-unverified", is_flag=True, help="Use a model that does not match the certificate beside it."
)
model_option = click.option("--model", type=PATH, default=DEFAULT_MODEL, help="Model file written by xexport onnx.")
