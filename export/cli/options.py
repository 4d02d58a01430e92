"""Options and arguments shared by commands of ``xexport`` and ``xserve``. No heavy imports."""

from __future__ import annotations

from pathlib import Path

import click

from xfeat.export.specs import CUDA_GRAPHS, DEFAULT_MODEL

model_argument = click.argument("model", type=click.Path(path_type=Path), default=DEFAULT_MODEL)

data_option = click.option(
    "--data", type=click.Path(path_type=Path), help="Folder of the images.  [default: the one that was featurized]"
)

weights_option = click.option(
    "--weights",
    "weights_file",
    type=click.Path(path_type=Path),
    help="The backbone's weights.  [default: those of the run]",
)

require_cuda_option = click.option(
    "--require-cuda", is_flag=True, help="Run on the GPU, and fail if part of the network would run on the CPU."
)

cuda_graphs_option = click.option(
    "--cuda-graphs",
    type=click.Choice(CUDA_GRAPHS),
    default=CUDA_GRAPHS[0],
    show_default=True,
    help="On a GPU, record a core model once per batch size as a CUDA graph, and replay it. auto continues without "
    "graphs, with a warning, if that fails.",
)
