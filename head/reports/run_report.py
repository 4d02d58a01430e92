"""report.html: one self-contained page to mail and print. Imports no torch."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xfeat.featurize.cache.columns import Skipped, describe_corrections
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.datasets.image_files import describe_left_out
from xfeat.featurize.errors import ImageError
from xfeat.featurize.images.decode import decode
from xfeat.featurize.images.preprocess import cut
from xfeat.featurize.pages.templates import page_environment
from xfeat.featurize.pages.titles import described
from xfeat.featurize.sources.image_source import ImageSource
from xfeat.featurize.sources.opening import open_source
from xfeat.featurize.specs import FeatureSpec, PreprocessSpec
from xfeat.featurize.text import MAX_LISTED, count_of, listed
from xfeat.head.evaluation.operating_point import threshold_metrics
from xfeat.head.evaluation.predictions import Predictions, softmax
from xfeat.head.evaluation.study import Cases, Study, cases_of
from xfeat.head.reports.formatting import (
    collapsed_rows,
    frequent_confusions,
    hardest_classes,
    interval,
    number,
    percent,
    points,
)
from xfeat.head.reports.study_text import (
    benefit_text,
    coefficient,
    differing_classes,
    expected_elsewhere,
    fewer_images,
    figure_rows,
    gap_texts,
)
from xfeat.head.runs.reader import Run
from xfeat.head.training.history import EpochRecord

if TYPE_CHECKING:
    from jinja2 import Template

THRESHOLDS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
PART_NAMES = {"test": "test", "valid": "validation"}
_ENOUGH_IMAGES = 100
_MAX_MISTAKES = 12
_THUMBNAIL_SIZE = (220, 220)


def render_report(
    run: Run,
    history: Sequence[EpochRecord],
    predictions: Predictions,
    group_of: Mapping[str, str],
    cautions: Sequence[str],
    skipped: Sequence[Skipped],
    images: Path | None,
) -> str:
    """Return the page of a run, from the predictions of all its images; ``skipped`` could not be read.

    ``group_of`` is path to patient, empty where it is unknown. Pictures are read from ``images``, the folder or
    archive; ``None`` if that was not found.
    """
    from xfeat.head.reports import canvas, plots

    part, names = run.shown_part, run.class_names
    hardest = hardest_classes(run.metrics[part]["classes"])
    shown = predictions.part(part)
    uncalibrated = softmax(shown.logits) if shown.temperature != 1 else None
    cases, study = cases_of(shown, names), run.statistics[part]
    values = page_values(cases, study, shown.paths, images, run.feature_spec, uncalibrated)
    for name in ("loss", "accuracy"):
        values["figures"][name] = canvas.as_svg(plots.training_curve(history, run.best_epoch, name))
    return page_template("report.html").render(
        **described(
            names,
            f", {count_of(len(shown), f'{PART_NAMES[part]} image')}",
            [group_of[path] for path in shown.paths],
            positive=study["positive"],
        ),
        **values,
        facts=run,
        cautions=cautions,
        skipped=skipped,
        part=part,
        subgroups=run.subgroups,
        expected=expected_elsewhere(run.crossval and run.crossval["elsewhere"]),
        thresholds={
            name: collapsed_rows(
                (threshold, threshold_metrics(cases.labels == code, cases.probabilities[:, code], threshold))
                for threshold in THRESHOLDS
            )
            for code, name in enumerate(names)
            if name in hardest
        },
    )


def page_values(
    cases: Cases,
    study: Study,
    paths: Sequence[str],
    images: Path | None,
    spec: FeatureSpec,
    uncalibrated: NDArray[np.floating] | None = None,
) -> dict[str, Any]:
    """Return what the template of every page needs of predicted images.

    Args:
        cases: the images.
        study: their figures.
        paths: of the images.
        images: the folder or archive that pictures are read from; ``None`` if it was not found.
        spec: settings of the features.
        uncalibrated: their probabilities (n, C) before calibration, if it changed them.
    """
    from xfeat.head.reports.plots import page_figures

    return {
        "class_names": cases.class_names,
        "spec_line": spec.describe(),
        "study": study,
        "figures": page_figures(cases, study, uncalibrated),
        "mistakes": _worst_mistakes(cases, paths, images, spec.preprocess),
        "wrong": int((cases.decisions != cases.labels).sum()),
    }


def _worst_mistakes(
    cases: Cases, paths: Sequence[str], images: Path | None, spec: PreprocessSpec
) -> list[dict[str, Any]]:
    """Return the misclassified images with the lowest probability of their true class, at most twelve.

    ``probability`` is that of the predicted class, ``thumbnail`` a data URL, or empty if the file is missing.
    """
    labels, probabilities, decisions, names = cases.labels, cases.probabilities, cases.decisions, cases.class_names
    wrong = np.flatnonzero(decisions != labels)
    source = None if images is None else open_source(images, broken_ok=True)
    worst = sorted(wrong.tolist(), key=lambda row: float(probabilities[row, labels[row]]))[:_MAX_MISTAKES]
    return [
        {
            "path": paths[row],
            "label": names[labels[row]],
            "predicted": names[decisions[row]],
            "probability": float(probabilities[row, decisions[row]]),
            "thumbnail": _thumbnail(source, paths[row], spec) if source else "",
        }
        for row in worst
    ]


def _thumbnail(source: ImageSource, path: str, spec: PreprocessSpec) -> str:
    try:
        image = cut(decode(source.read(path)[0], spec), spec)
    except ImageError:
        return ""
    image.thumbnail(_THUMBNAIL_SIZE, Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def page_template(name: str, package: str = "") -> Template:
    """Load a page template of this package, or of ``package``, with the number filters of all pages."""
    environment = page_environment(("xfeat.head.reports", "templates"), *([(package, ".")] if package else []))
    environment.filters |= {"coefficient": coefficient, "benefit": benefit_text, "gap_texts": gap_texts}
    environment.filters |= {"percent": percent, "points": points, "number": number}
    environment.filters |= {"hardest": hardest_classes, "listed": listed}
    environment.globals |= {"max_classes": MAX_LISTED, "frequent_confusions": frequent_confusions}
    environment.globals |= {
        "differing_classes": differing_classes,
        "figure_rows": figure_rows,
        "fewer_images": fewer_images,
    }
    environment.filters["range"] = lambda ends: "" if ends is None else interval(ends)
    return environment.get_template(name)


def few_images_caution(images: int, what: str = "images") -> list[str]:
    """Return a caution if there are fewer than 100 images."""
    if images >= _ENOUGH_IMAGES:
        return []
    return [f"Only {images} {what}: one image is {100 / images:.1f} percentage points."]


def file_cautions(cache: FeatureCache) -> list[str]:
    """Return what became of files that are in no figure: skipped images, and what was left out of the data set."""
    count = len(cache.skipped)
    skipped = [f"{count} images could not be read and were skipped; they are listed below."] if count else []
    if corrected := describe_corrections(cache.corrections):
        before = "" if cache.stored_columns is None else " The audit is of the data before them."
        skipped.append(f"Corrections: {corrected}.{before}")
    return skipped + [line[0].upper() + line[1:] + "." for line in describe_left_out(cache.left_out)]


def cautions_of(run: Run, predictions: Predictions, cache: FeatureCache) -> list[str]:
    """Return what a reader must know before quoting a metric of a run."""
    part, cautions = run.shown_part, []
    if part == "valid":
        cautions.append(
            "There is no test split. These metrics are optimistically biased: the epoch was chosen on the same images."
        )
    cautions += few_images_caution(run.metrics[part]["images"], f"{part} images")
    if not any(cache.columns.group):
        cautions.append(
            "The images have no groups. If one patient has images in two splits, these metrics are optimistically "
            "biased: name the patients with xfeat featurize --groups."
        )
    elif leaks := _groups_in_two_splits(predictions, cache):
        cautions.append(
            f"{leaks} groups (patients) have images in more than one split: these metrics are optimistically biased."
        )
    cautions += file_cautions(cache)
    if run.operating_point and run.operating_point.note:
        cautions.append(f"Operating point: {run.operating_point.note}.")
    return cautions


def _groups_in_two_splits(predictions: Predictions, cache: FeatureCache) -> int:
    group_of = dict(zip(cache.columns.path, cache.columns.group, strict=True))
    used = {(group_of[path], part) for path, part in zip(predictions.paths, predictions.split, strict=True)}
    return sum(count > 1 for group, count in Counter(group for group, _ in used).items() if group)
