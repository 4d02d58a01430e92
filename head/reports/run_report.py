"""report.html: one page with everything in it, that can be mailed and printed. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from xfeat.featurize.cache.columns import Skipped
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.head.evaluation.metrics import confusion_counts, ratio
from xfeat.head.evaluation.predictions import Predictions, softmax
from xfeat.head.reports.formatting import interval, number, percent, points
from xfeat.head.reports.mistakes import Answered, worst_mistakes
from xfeat.head.training.history import EpochRecord

if TYPE_CHECKING:
    from jinja2 import Template

THRESHOLDS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
_FEW_IMAGES = 100


@dataclass(frozen=True)
class ReportInput:
    """All that a report is made of.

    Attributes:
        facts: the content of run.json.
        history: one record an epoch.
        predictions: of all rows that take part.
        data_root: the folder of the images.
        spec_line: what the features are.
        cautions: what a reader must know before quoting a figure.
        skipped: images that could not be read.
    """

    facts: dict[str, Any]
    history: Sequence[EpochRecord]
    predictions: Predictions
    data_root: str
    spec_line: str
    cautions: list[str]
    skipped: list[Skipped]

    @classmethod
    def of(
        cls, cache: FeatureCache, facts: dict[str, Any], history: Sequence[EpochRecord], predictions: Predictions
    ) -> ReportInput:
        """Take from a cache what a report needs; its features stay where they are."""
        return cls(
            facts=facts,
            history=history,
            predictions=predictions,
            data_root=cache.data_root,
            spec_line=cache.spec.describe(),
            cautions=_cautions(facts, predictions, cache),
            skipped=cache.skipped,
        )

    @property
    def part(self) -> str:
        """The part whose figures are shown: test, or valid without one."""
        return "test" if "test" in self.facts["metrics"] else "valid"


def render_report(report: ReportInput) -> str:
    """Return the page of a run."""
    from xfeat.head.reports import plots

    facts, part = report.facts, report.part
    shown = report.predictions.part(part)
    names = tuple(facts["class_names"])
    uncalibrated = softmax(shown.logits) if shown.temperature != 1 else None
    probabilities = shown.probabilities
    figures = {
        "loss": plots.training_curve(report.history, facts["best_epoch"], "loss"),
        "accuracy": plots.training_curve(report.history, facts["best_epoch"], "accuracy"),
        "confusion": plots.confusion_matrix_plot(facts["metrics"][part]["confusion_matrix"], names),
        "roc": plots.roc_curves(shown.labels, probabilities, names),
        "precision_recall": plots.precision_recall_curves(shown.labels, probabilities, names),
        "reliability": plots.reliability_diagram(shown.labels, probabilities, names, uncalibrated),
    }
    return page_template("report_template.html").render(
        report=report,
        facts=facts,
        part=part,
        figures=figures,
        point=facts["operating_point"],
        thresholds={
            name: threshold_table(shown.labels == code, probabilities[:, code]) for code, name in enumerate(names)
        },
        mistakes=worst_mistakes(
            Answered(shown.paths, shown.labels, probabilities, shown.decisions), names, report.data_root
        ),
        wrong=int((shown.decisions != shown.labels).sum()),
    )


def threshold_table(positive: np.ndarray, scores: np.ndarray) -> list[dict[str, float | None]]:
    """Return sensitivity, specificity, PPV and NPV at each of :data:`THRESHOLDS`.

    Args:
        positive: bool (n,), whether the row is of the class.
        scores: (n,), its probability.
    """
    rows = []
    for threshold in THRESHOLDS:
        counts = confusion_counts(positive, scores >= threshold)
        rates = {name: ratio(*pair) for name, pair in counts.rates.items()}
        rows.append({"threshold": threshold, **rates, "missed": counts.fn, "false_alarms": counts.fp})
    return rows


def page_template(name: str, package: str = "") -> Template:
    """Load a template of this package, or of another that includes some of these, with the filters that all pages write
    figures with."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader

    loaders = [PackageLoader("xfeat.head.reports", "templates"), *([PackageLoader(package, ".")] if package else [])]
    environment = Environment(loader=ChoiceLoader(loaders), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = percent
    environment.filters["points"] = points
    environment.filters["number"] = number
    environment.filters["range"] = lambda ends: "" if ends is None else interval(ends)
    return environment.get_template(name)


def few_images(images: int, what: str = "images") -> list[str]:
    """Return what any page says of figures on so few images, if they are few."""
    if images >= _FEW_IMAGES:
        return []
    return [f"Only {images} {what}: one image is {100 / images:.1f} percentage points."]


def unread(skipped: Sequence[Skipped]) -> list[str]:
    """Return what any page says of images that were skipped, if there are any."""
    return [f"{len(skipped)} images could not be read and take no part; they are listed below."] if skipped else []


def _cautions(facts: dict[str, Any], predictions: Predictions, cache: FeatureCache) -> list[str]:
    cautions = []
    part = "test" if "test" in facts["metrics"] else "valid"
    if part == "valid":
        cautions.append("There is no test split. These figures are of the images that chose the epoch: they flatter.")
    images = facts["metrics"][part]["images"]
    cautions += few_images(images, f"{part} images")
    if not any(cache.columns.group):
        cautions.append(
            "The images have no groups. If one patient has images in two parts, these figures are too good: "
            "name patients with xfeat featurize --groups."
        )
    elif leaks := _groups_in_two_parts(predictions, cache):
        cautions.append(f"{leaks} groups (patients) have images in more than one part: these figures are too good.")
    cautions += unread(cache.skipped)
    if facts["operating_point"] and facts["operating_point"]["note"]:
        cautions.append(f"Operating point: {facts['operating_point']['note']}.")
    return cautions


def _groups_in_two_parts(predictions: Predictions, cache: FeatureCache) -> int:
    group_of = dict(zip(cache.columns.path, cache.columns.group, strict=True))
    parts_of: dict[str, set[str]] = {}
    for path, part in zip(predictions.paths, predictions.split, strict=True):
        if group_of[path]:
            parts_of.setdefault(group_of[path], set()).add(part)
    return sum(len(parts) > 1 for parts in parts_of.values())
