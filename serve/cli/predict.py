"""``xserve predict``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xfeat.featurize.console import json_option, progress_bar
from xfeat.serve.cli.options import model_option, threads_option

if TYPE_CHECKING:
    from xfeat.export.model.metadata import ModelMetadata
    from xfeat.serve.inference.results import Prediction, SkippedImage

_SHOWN = 10


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PATH…")
@model_option
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="auto, cpu, cuda or cuda:N. Fails if the device is missing; no fallback.",
)
@threads_option
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Images per call of the network.  [default: 8 on a CPU, 64 on a GPU]",
)
@json_option
def predict(
    paths: tuple[Path, ...], model: Path, device: str, threads: int | None, batch_size: int | None
) -> tuple[dict[str, Any], str]:
    """Classify image files, and all images in folders.

    Images that cannot be read are reported on stderr and skipped. It is an error if none can be read.
    """
    from xfeat.serve.inference.predictor import Predictor
    from xfeat.serve.inference.results import as_json, split_results

    predictor = Predictor.open(model, device, threads)
    with progress_bar("predicting", "images") as progress:
        results = predictor.predict_paths(paths, batch_size=batch_size, progress=progress)
    predictions, skipped = split_results(results)
    _report_skipped(predictions, skipped)
    return as_json(str(model), results), _as_table(predictions, predictor.metadata)


def _report_skipped(predictions: list[Prediction], skipped: list[SkippedImage]) -> None:
    from xfeat.featurize.errors import DataError

    if predictions:
        for image in skipped:
            click.echo(f"warning: skipped {image.path}: {image.reason}", err=True)
        return
    reasons = [f"{image.path}: {image.reason}" for image in skipped[:_SHOWN]]
    if len(skipped) > _SHOWN:
        reasons.append(f"… and {len(skipped) - _SHOWN} more")
    raise DataError("none of the images could be classified", found="\n".join(reasons))


def _as_table(predictions: list[Prediction], metadata: ModelMetadata) -> str:
    """Return aligned columns: path, label, probability per class, and the out-of-distribution score if there is one."""
    has_ood = any(prediction.ood is not None for prediction in predictions)
    rows = [["path", "label", *metadata.class_names, *(["ood"] if has_ood else [])]]
    for prediction in predictions:
        row = [prediction.path, prediction.label]
        row += [f"{probability:.4f}" for probability in prediction.probabilities.values()]
        if has_ood:
            row.append("" if prediction.ood is None else f"{prediction.ood:.2f}")
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        cells += [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    if metadata.threshold is not None:
        lines.append(f"{metadata.positive} at a probability of {metadata.threshold:.4g} or more")
    if has_ood and metadata.ood_threshold is not None:
        lines.append(f"out-of-distribution above {metadata.ood_threshold:.4g}")
    return "\n".join(lines)
