"""Options that several commands of ``xserve`` share. No heavy imports here."""

from __future__ import annotations

import click

from xfeat.export.specs import DEFAULT_MODEL, MAX_THREADS
from xfeat.featurize.console import PATH

THREADS = click.IntRange(1, MAX_THREADS)

model_option = click.option("--model", type=PATH, default=DEFAULT_MODEL, help="Model file written by xexport onnx.")
