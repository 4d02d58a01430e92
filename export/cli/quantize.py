"""The command ``xexport quantise``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import xfeat
from xfeat.export.cli.options import data_option, model_argument
from xfeat.export.specs import QuantizeSpec
from xfeat.featurize.console import COUNT, NOT_NEGATIVE, PATH, Printed, json_option, progress_bars, spec_option

if TYPE_CHECKING:
    from xfeat.export.quantization.quantize import Quantized


@click.command()
@model_argument
@click.option("-o", "--output", type=PATH, help="Model to write.  [default: MODEL.int8.onnx]")
@click.option("--run", type=PATH, help="Run of MODEL.  [default: that of its name in runs/]")
@data_option
@click.option("--fp16", is_flag=True, help="Half precision instead of INT8: for GPUs.")
@spec_option(QuantizeSpec, "gate", NOT_NEGATIVE, "Largest loss of accuracy, sensitivity or AUC, in points.")
@spec_option(
    QuantizeSpec,
    "calibration_images",
    COUNT,
    "Training images to equalise channels and to correct the mean of each feature. Layers are quantised on 32 of them "
    "(on more if images are below 224 pixels, on fewer above).",
)
@json_option
def quantize(model: Path, output: Path | None, run: Path | None, fp16: bool, **settings: Any) -> Printed:
    """Write MODEL in 8 bits, about a quarter of the size, if it passes the accuracy gate.

    Training images of the run calibrate it. Accuracy, sensitivity and AUC are measured before and after, on validation
    images. If all layers in 8 bits lose more than the gate allows, stem and first block stay in float32; of another
    encoder than an EfficientNet, ranges of activations are averaged. One image may then be decided differently, even if
    it is more than the gate. If the loss is larger: exit code 1, a table of both attempts, and no file.
    """
    precision = "float16" if fp16 else "int8"
    with progress_bars() as progress:
        done = xfeat.quantize(model, output, run=run, precision=precision, progress=progress, **settings)
    return done.to_dict(), _quantized(done)


def _quantized(done: Quantized) -> list[str]:
    from xfeat.export.parity.accuracy_loss import scores_table

    lines = [
        f"{done.files['full']} and {done.files['core']} written: {done.bytes_after / 1e6:.1f} MB instead of "
        f"{done.bytes_before / 1e6:.1f} MB",
        f"on {done.images} validation images, {done.decided_differently} decided differently, probabilities differ by "
        f"at most {done.max_difference:.3f}, on average by {done.mean_difference:.4f}:",
        *scores_table(done.before, done.after),
    ]
    if done.familiar:
        lines.append(
            "out-of-distribution threshold: {threshold_after:.4g} instead of {threshold_before:.4g} "
            "({beyond_old_threshold:.1%} of the images are above the old one)".format(**done.familiar)
        )
    if done.float_layers:
        lines.append(f"in float32: {', '.join(done.float_layers)}")
    return [*lines, f"certificate: {done.certificate}"]
