"""report.html: one self-contained page to mail and print. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from xfeat.featurize.cache.columns import Skipped
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.head.evaluation.metrics import confusion_counts, ratio
from xfeat.head.evaluation.predictions import Predictions, softmax
from xfeat.head.reports.formatting import interval, number, percent, points
from xfeat.head.reports.mistakes import worst_mistakes
from xfeat.head.runs.reader import Run
from xfeat.head.training.history import EpochRecord

if TYPE_CHECKING:
    from jinja2 import Template

THRESHOLDS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
_ENOUGH_IMAGES = 100


def render_report(
    run: Run,
    history: Sequence[EpochRecord],
    predictions: Predictions,
    cautions: Sequence[str],
    skipped: Sequence[Skipped],
) -> str:
    """Return the page of a run, from the predictions of all its images; ``skipped`` could not be read."""
    from xfeat.head.reports import plots

    part, names = run.shown_part, run.class_names
    shown = predictions.part(part)
    uncalibrated = softmax(shown.logits) if shown.temperature != 1 else None
    probabilities = shown.probabilities
    figures = {
        "loss": plots.training_curve(history, run.best_epoch, "loss"),
        "accuracy": plots.training_curve(history, run.best_epoch, "accuracy"),
        "confusion": plots.confusion_matrix_plot(run.metrics[part]["confusion_matrix"], names),
        "roc": plots.roc_curves(shown.labels, probabilities, names),
        "precision_recall": plots.precision_recall_curves(shown.labels, probabilities, names),
        "reliability": plots.reliability_diagram(shown.labels, probabilities, names, uncalibrated),
    }
    return page_template("report.html").render(
        facts=run,
        class_names=names,
        spec_line=run.feature_spec.describe(),
        cautions=cautions,
        skipped=skipped,
        part=part,
        figures=figures,
        thresholds={
            name: threshold_table(shown.labels == code, probabilities[:, code]) for code, name in enumerate(names)
        },
        mistakes=worst_mistakes(
            shown.paths, shown.labels, probabilities, shown.decisions, names, run.cache["data_root"]
        ),
        wrong=int((shown.decisions != shown.labels).sum()),
    )


def threshold_table(positive: np.ndarray, scores: np.ndarray) -> list[dict[str, float | None]]:
    """Return sensitivity, specificity, PPV and NPV at each of :data:`THRESHOLDS`.

    Args:
        positive: bool (n,), whether the row is of the class.
        scores: (n,), the predicted probability of the class.
    """
    rows = []
    for threshold in THRESHOLDS:
        counts = confusion_counts(positive, scores >= threshold)
        rates = {name: ratio(*pair) for name, pair in counts.rates.items()}
        rows.append(
            {"threshold": threshold, **rates, "missed": counts.false_negative, "false_alarms": counts.false_positive}
        )
    return rows


def page_template(name: str, package: str = "") -> Template:
    """Load a page template of this package, or of ``package``, with the number filters of all pages."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader

    loaders = [PackageLoader("xfeat.head.reports", "templates"), *([PackageLoader(package, ".")] if package else [])]
    environment = Environment(loader=ChoiceLoader(loaders), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "points": points, "number": number}
    environment.filters["range"] = lambda ends: "" if ends is None else interval(ends)
    return environment.get_template(name)


def few_images_caution(images: int, what: str = "images") -> list[str]:
    """Return a caution if there are fewer than 100 images."""
    if images >= _ENOUGH_IMAGES:
        return []
    return [f"Only {images} {what}: one image is {100 / images:.1f} percentage points."]


def skipped_caution(skipped: Sequence[Skipped]) -> list[str]:
    """Return a caution if images were skipped."""
    return [f"{len(skipped)} images could not be read and were skipped; they are listed below."] if skipped else []


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
    cautions += skipped_caution(cache.skipped)
    if run.operating_point and run.operating_point.note:
        cautions.append(f"Operating point: {run.operating_point.note}.")
    return cautions


def _groups_in_two_splits(predictions: Predictions, cache: FeatureCache) -> int:
    group_of = dict(zip(cache.columns.path, cache.columns.group, strict=True))
    parts_of: dict[str, set[str]] = {}
    for path, part in zip(predictions.paths, predictions.split, strict=True):
        if group_of[path]:
            parts_of.setdefault(group_of[path], set()).add(part)
    return sum(len(parts) > 1 for parts in parts_of.values())
