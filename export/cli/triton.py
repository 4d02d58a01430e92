"""The command ``xexport triton``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import xfeat
from xfeat.export.cli.options import model_argument
from xfeat.export.specs import TRITON_KINDS, TritonSpec
from xfeat.featurize.console import COUNT, NOT_NEGATIVE, PATH, Printed, json_option, spec_option


@click.command()
@model_argument
@click.option(
    "-o",
    "--output",
    type=PATH,
    default="triton",
    help="Model repository to write into; other models in it are not changed.",
)
@click.option("--name", help="Name of the model in Triton.  [default: MODEL without its suffix]")
@spec_option(TritonSpec, "model_version", COUNT, "Triton serves the highest version.")
@spec_option(TritonSpec, "max_batch", COUNT, "Largest number of images per call of the network.")
@spec_option(TritonSpec, "batch_wait_ms", NOT_NEGATIVE, "How long an image waits for others of its size.")
@spec_option(TritonSpec, "instances", COUNT, "Copies of the model, per GPU if there are any.")
@spec_option(
    TritonSpec,
    "device",
    click.Choice(list(TRITON_KINDS)),
    "auto uses GPUs if there are any; with gpu, Triton refuses the model if there is none.",
)
@click.option(
    "--storage-uri",
    help="Where KServe finds the repository, such as s3://bucket/triton.  [default: pvc://NAME-OF-THE-FOLDER]",
)
@json_option
def triton(model: Path, output: Path, **settings: Any) -> Printed:
    """Write MODEL into a model repository for NVIDIA Triton, with a manifest for KServe.

    Triton forms batches of images of one size. model.onnx takes images of any size, so each size forms batches of its
    own; model.core.onnx takes tensors that have been resized, so all of them can share batches.
    """
    from dataclasses import asdict

    done = xfeat.write_triton(model, output, **settings)
    content = {key: str(value) for key, value in asdict(done).items()}
    return content, [
        f"{done.model} and {done.config.name} written: tritonserver --model-repository={done.folder}",
        f"{done.manifest} expects the repository at {done.storage_uri}: change it with --storage-uri URI",
    ]
