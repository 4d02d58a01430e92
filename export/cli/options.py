"""Options and arguments shared by commands of ``xexport`` and ``xserve``. No heavy imports."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from xfeat.export.specs import CUDA_GRAPHS, DEFAULT_MODEL, BenchSpec
from xfeat.featurize.console import DATA, PATH, Decorator, spec_option

if TYPE_CHECKING:
    from minisign import PublicKey

model_argument = click.argument("model", type=PATH, default=DEFAULT_MODEL)
data_option = click.option("--data", type=DATA, help="Folder of the images.  [default: the one that was featurized]")
weights_option = click.option(
    "--weights", "weights_file", type=PATH, help="The backbone's weights.  [default: those of the run]"
)


def _read_key(ctx: click.Context, parameter: click.Parameter, path: Path | None) -> PublicKey | None:
    from xfeat.export.parity.signature import read_public_key

    return None if path is None else read_public_key(path)


require_signature_option = click.option(
    "--require-signature",
    type=PATH,
    callback=_read_key,
    metavar="KEY",
    help="Refuse a model whose certificate has no valid signature by this public key of minisign.",
)
cuda_graphs_option = spec_option(
    BenchSpec,
    "cuda_graphs",
    click.Choice(CUDA_GRAPHS),
    "On a GPU, record the model once per batch size as a CUDA graph, and replay it. auto continues without graphs, "
    "with a warning, if that fails.",
)


def device_option(default: str) -> Decorator:
    """Return the option of the device that runs a model."""
    return click.option(
        "--device", default=default, help="auto, cpu, cuda or cuda:N. Fails if the device is missing; no fallback."
    )
