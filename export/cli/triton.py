"""The command ``xexport triton``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from xfeat.export.cli.options import model_argument
from xfeat.export.specs import TRITON_KINDS, TritonSpec
from xfeat.featurize.console import default_of, json_option


@click.command()
@model_argument
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default="triton",
    show_default=True,
    help="Model repository to write into; other models in it are not changed.",
)
@click.option("--name", help="Name of the model in Triton.  [default: MODEL without its suffix]")
@click.option(
    "--model-version",
    type=click.IntRange(min=1),
    default=default_of(TritonSpec, "model_version"),
    show_default=True,
    help="Triton serves the highest version.",
)
@click.option(
    "--max-batch",
    type=click.IntRange(min=1),
    default=default_of(TritonSpec, "max_batch"),
    show_default=True,
    help="Largest number of images per call of the network.",
)
@click.option(
    "--batch-wait-ms",
    type=click.FloatRange(min=0),
    default=default_of(TritonSpec, "batch_wait_ms"),
    show_default=True,
    help="How long an image waits for others of its size.",
)
@click.option(
    "--instances",
    type=click.IntRange(min=1),
    default=default_of(TritonSpec, "instances"),
    show_default=True,
    help="Copies of the model, per GPU if there are any.",
)
@click.option(
    "--device",
    type=click.Choice(list(TRITON_KINDS)),
    default=default_of(TritonSpec, "device"),
    show_default=True,
    help="auto uses GPUs if there are any; with gpu, Triton refuses the model if there is none.",
)
@click.option(
    "--storage-uri",
    help="Where KServe finds the repository, such as s3://bucket/triton.  [default: pvc://NAME-OF-THE-FOLDER]",
)
@json_option
def triton(model: Path, output: Path, **settings: Any) -> tuple[dict[str, Any], str]:
    """Write MODEL into a model repository for NVIDIA Triton, with a manifest for KServe.

    Triton forms batches of images of one size. model.onnx takes images of any size, so each size forms batches of its
    own; model.core.onnx takes tensors that have been resized, so all of them can share batches.
    """
    from dataclasses import asdict

    from xfeat.export.triton import write_repository

    done = write_repository(model, output, TritonSpec(**settings))
    content = {key: str(value) for key, value in asdict(done).items()}
    return content, (
        f"{done.model} and {done.config.name} written: tritonserver --model-repository={done.folder}\n"
        f"{done.manifest} expects the repository at {done.storage_uri}: change it with --storage-uri URI"
    )
