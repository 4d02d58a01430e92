"""``xserve predict``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from xfeat.export.cli.options import device_option
from xfeat.featurize.console import COUNT, PATH, Printed, first_lines, json_option, progress_bar, warn
from xfeat.featurize.errors import DataError
from xfeat.serve.cli.options import THREADS, model_option

if TYPE_CHECKING:
    from xfeat.export.model.metadata import ModelMetadata
    from xfeat.serve.inference.results import Prediction


@click.command()
@click.argument("paths", nargs=-1, required=True, type=PATH, metavar="PATH…")
@model_option
@device_option("auto")
@click.option("--threads", type=THREADS, help="CPU threads for the network.  [default: number of cores]")
@click.option("--batch-size", type=COUNT, help="Images per call of the network.  [default: 8 on a CPU, 64 on a GPU]")
@json_option
def predict(paths: tuple[Path, ...], model: Path, device: str, threads: int | None, batch_size: int | None) -> Printed:
    """Classify image files, and all images in folders.

    Images that cannot be read are reported on stderr and skipped. It is an error if none can be read.
    """
    from xfeat.serve.inference.predictor import Predictor
    from xfeat.serve.inference.results import as_json, split_results

    predictor = Predictor.open(model, device, threads, batch_size=batch_size)
    with progress_bar("predicting", "images") as progress:
        results = predictor.predict_paths(paths, progress=progress)
    predictions, skipped = split_results(results)
    reasons = [f"{image.path}: {image.reason}" for image in skipped]
    if not predictions:
        raise DataError("none of the images could be classified", found="\n".join(first_lines(reasons)))
    warn(f"skipped {reason}" for reason in reasons)
    return as_json(str(model), results), _as_table(predictions, predictor.metadata)


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
