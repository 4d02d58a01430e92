"""``xexport onnx``."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import xfeat
from xfeat.export.cli.options import data_option, weights_option
from xfeat.export.cli.verify import agreement_lines
from xfeat.export.specs import DEFAULT_MODEL, OPSETS, ExportSpec
from xfeat.featurize.console import COUNT, PATH, Printed, json_option, progress_bars, spec_option

if TYPE_CHECKING:
    from xfeat.export.export import Export


_option = partial(spec_option, ExportSpec)


@click.command()
@click.argument("run", type=PATH, required=False)
@click.option("-o", "--output", type=PATH, default=DEFAULT_MODEL, help="Model to write.")
@weights_option
@click.option(
    "--features",
    type=PATH,
    help="Cache that the run was trained on.  [default: its own, also if the project has moved]",
)
@data_option
@_option("max_check_images", COUNT, "Largest number of test images in the parity check.", flag="--check-images")
@click.option(
    "--allow-changed-cache",
    is_flag=True,
    help="Export although features.h5 has changed since the run; without the out-of-distribution score.",
)
@_option(
    "ood", bool, "Add the out-of-distribution score (output ood), computed from the training images in features.h5."
)
@_option(
    "opset",
    click.Choice([str(number) for number in OPSETS]),
    "Opset of the core model; 13 for older runtimes.",
    default=str(ExportSpec.opset),
)
@_option(
    "tolerance",
    float,
    "Largest difference between a probability of the full model and the one in the run's predictions.csv. Can be "
    "raised only if the features were computed with a --precision other than float32. The comparison with torch has "
    "fixed tolerances.",
)
@json_option
def onnx(run: Path | None, output: Path, opset: str, **settings: Any) -> Printed:
    """Export RUN (by default the newest in runs/) to an ONNX model.

    Beside it are written a core model (.core.onnx) for more runtimes, and a certificate: the models are compared with
    Pillow and torch on the run's test images. If a prediction differs, nothing is written.
    """
    with progress_bars() as progress:
        done = xfeat.export_run(run, output, opset=int(opset), progress=progress, **settings)
    return _as_json(done, done.metadata.run), _as_text(done, done.metadata.run)


def _as_json(done: Export, run: str) -> dict[str, Any]:
    facts = asdict(done)
    return {
        "run": run,
        "model": str(done.files["full"]),
        "core_model": str(done.files["core"]),
        "certificate": str(done.certificate),
        "against_torch": facts["checks"],
        "against_training": facts["training"],
        "missing_heatmap": done.missing_heatmap,
        "ood_threshold": done.metadata.ood_threshold,
    }


def _as_text(done: Export, run: str) -> list[str]:
    lines = [f"{done.files['full']} and {done.files['core']} written from run {run}"]
    lines += agreement_lines(done.checks, "torch")
    training = done.training
    within = (
        f", and {training.close_calls} within the tolerance of {training.tolerance:g}" if training.close_calls else ""
    )
    lines.append(
        f"full model against predictions.csv: largest difference {training.max_difference:.1e}, "
        f"changed decisions {training.changed_decisions}{within}"
    )
    if done.missing_heatmap:
        lines.append(f"no heatmap: {done.missing_heatmap}")
    use = shlex.join(["xexport", "snippet", str(done.files["full"]), "--lang", "python"])
    return [*lines, f"certificate: {done.certificate}", f"to predict without xfeat: {use}  (or js, cpp)"]
