"""``xserve predict``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import xfeat
from xfeat.export.cli.options import device_option, require_signature_option
from xfeat.featurize.console import COUNT, PATH, Printed, json_option, progress_bar, warn
from xfeat.featurize.errors import DataError
from xfeat.featurize.text import MAX_LISTED, aligned, first_ten, shortened
from xfeat.serve.cli.options import THREADS, allow_unverified_option, model_option

if TYPE_CHECKING:
    from xfeat.export.model.metadata import ModelMetadata
    from xfeat.serve.inference.results import Prediction

_SHOWN_CLASSES = 3


@click.command()
@click.argument("paths", nargs=-1, required=True, type=PATH, metavar="PATH...")
@model_option
@device_option("auto")
@click.option("--threads", type=THREADS, help="CPU threads for the network.  [default: number of cores]")
@click.option("--batch-size", type=COUNT, help="Images per call of the network.  [default: 8 on a CPU, 64 on a GPU]")
@allow_unverified_option
@require_signature_option
@json_option
def predict(paths: tuple[Path, ...], model: Path, **settings: Any) -> Printed:
    """Classify image files, and all images in folders.

    Images that cannot be read are reported on stderr and skipped. It is an error if none can be read.
    """
    predictor = xfeat.Predictor(model, **settings)
    from xfeat.serve.inference.results import as_json, split_results

    with progress_bar("predicting", "images") as progress:
        results = predictor.predict_paths(paths, progress=progress)
    predictions, skipped = split_results(results)
    reasons = [f"{image.path}: {image.reason}" for image in skipped]
    if not predictions:
        raise DataError("none of the images could be classified", found="\n".join(first_ten(reasons)))
    warn(f"skipped {reason}" for reason in reasons)
    return as_json(str(model), results), _as_table(predictions, predictor.metadata)


def _as_table(predictions: list[Prediction], metadata: ModelMetadata) -> list[str]:
    """Return aligned columns: path, label, probabilities, and the out-of-distribution score if there is one.

    Of more than ten classes, only the three most probable ones of each image are shown.
    """
    has_ood = any(prediction.ood is not None for prediction in predictions)
    many = len(metadata.class_names) > MAX_LISTED
    shown = ["most probable"] if many else [shortened(name) for name in metadata.class_names]
    rows = [["path", "label", *shown, *(["ood"] if has_ood else [])]]
    for prediction in predictions:
        row = [prediction.path, shortened(prediction.label)]
        row += _most_probable(prediction) if many else [f"{share:.4f}" for share in prediction.probabilities.values()]
        if has_ood:
            row.append("" if prediction.ood is None else f"{prediction.ood:.2f}")
        rows.append(row)
    lines = aligned(rows, left=(0, 1, 2) if many else (0, 1))
    if many:
        lines.append(f"all {len(metadata.class_names)} probabilities: --json")
    if metadata.threshold is not None:
        lines.append(f"{metadata.positive} at a probability of {metadata.threshold:.4g} or more")
    if has_ood and metadata.ood_threshold is not None:
        lines.append(f"out-of-distribution above {metadata.ood_threshold:.4g}")
    return lines


def _most_probable(prediction: Prediction) -> list[str]:
    best = sorted(prediction.probabilities.items(), key=lambda item: -item[1])[:_SHOWN_CLASSES]
    return [", ".join(f"{shortened(name)} {share:.4f}" for name, share in best)]
