"""``xexport explain``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xfeat.export.cli.options import require_cuda_option
from xfeat.featurize.console import json_option, progress_bar

if TYPE_CHECKING:
    from xfeat.export.explain import Explanation


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGES…")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default="explained",
    show_default=True,
    help="Folder for the pictures.",
)
@click.option("--class", "shown", metavar="CLASS", help="Show the heatmap of CLASS.  [default: the predicted class]")
@require_cuda_option
@json_option
def explain(
    model: Path, images: tuple[Path, ...], output: Path, shown: str | None, require_cuda: bool
) -> tuple[dict[str, Any], str]:
    """Write each image with MODEL's heatmap (Grad-CAM) over it.

    IMAGES are files, and folders of them. Bright regions raised the score of the class shown. A heatmap shows where the
    last layer of the network responded, not why, and is no evidence of a finding.
    """
    from xfeat.export.explain import explain_images
    from xfeat.export.model.file import open_model

    opened = open_model(model, device="cuda" if require_cuda else "cpu")
    with progress_bar("explaining", "images") as progress:
        done, skipped = explain_images(opened, images, output, shown=shown, progress=progress)
    for path, reason in skipped:
        click.echo(f"warning: skipped {path}: {reason}", err=True)
    lines = [f"{each.picture}  {each.shown} {each.probability:.4f}{_ood_note(each)}" for each in done]
    content = {
        "model": str(model),
        "explanations": [each.to_dict() for each in done],
        "skipped": [{"path": path, "reason": reason} for path, reason in skipped],
    }
    return content, "\n".join(lines)


def _ood_note(each: Explanation) -> str:
    return "  out of distribution" if each.out_of_distribution else ""
