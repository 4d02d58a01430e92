"""``xexport explain``."""

from __future__ import annotations

from pathlib import Path

import click

import xfeat
from xfeat.export.cli.options import device_option
from xfeat.featurize.console import PATH, Printed, json_option, progress_bars, warn


@click.command()
@click.argument("model", type=PATH)
@click.argument("images", nargs=-1, required=True, type=PATH, metavar="IMAGES...")
@click.option("-o", "--output", type=PATH, default="explained", help="Folder for the pictures.")
@click.option("--class", "shown", metavar="CLASS", help="Show the heatmap of CLASS.  [default: the predicted class]")
@device_option("cpu")
@json_option
def explain(model: Path, images: tuple[Path, ...], output: Path, shown: str | None, device: str) -> Printed:
    """Write each image with MODEL's heatmap (Grad-CAM) over it.

    IMAGES are files, and folders of them. Bright regions raised the score of the class shown. A heatmap shows where the
    last layer of the network responded, not why, and is no evidence of a finding.
    """
    with progress_bars() as progress:
        done, skipped = xfeat.explain(model, images, output=output, shown=shown, device=device, progress=progress)
    warn(f"skipped {path}: {reason}" for path, reason in skipped)
    lines = [
        f"{each.picture}  {each.shown} {each.probability:.4f}" + "  out of distribution" * each.out_of_distribution
        for each in done
    ]
    content = {
        "model": str(model),
        "explanations": [each.to_dict() for each in done],
        "skipped": [{"path": path, "reason": reason} for path, reason in skipped],
    }
    return content, lines
