"""report.html: one page with everything in it, that can be mailed and printed."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from featurize.cache import FeatureCache
from featurize.errors import ImageError
from featurize.images import decode
from head import plots
from head.fit import EpochRecord

if TYPE_CHECKING:
    from head.train import Predictions

THRESHOLDS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
_WORST = 12
_THUMBNAIL = (220, 220)
_FEW_TEST_IMAGES = 100


class Mistake(NamedTuple):
    """One wrongly classified image.

    Attributes:
        path: relative to the data root.
        label: the true class.
        decided: the class decided on.
        confidence: its probability.
        picture: a data URL, or empty if the file is gone.
    """

    path: str
    label: str
    decided: str
    confidence: float
    picture: str


def render_report(
    facts: dict[str, Any], history: Sequence[EpochRecord], predictions: Predictions, cache: FeatureCache
) -> str:
    """Return the page of a run.

    Args:
        facts: the content of run.json.
        history: one record an epoch.
        predictions: of all rows that take part.
        cache: the features, for paths and pictures.
    """
    from jinja2 import Environment, PackageLoader

    part = "test" if "test" in facts["metrics"] else "valid"
    labels, probabilities = predictions.part(part)
    names = cache.class_names
    figures = {
        "curves": plots.training_curves(history, facts["best_epoch"]),
        "confusion": plots.confusion_matrix_plot(facts["metrics"][part]["confusion_matrix"], names),
        "roc": plots.roc_and_precision_recall(labels, probabilities, names),
        "reliability": plots.reliability_diagram(labels, probabilities, names),
    }
    environment = Environment(loader=PackageLoader("head", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = lambda value: "–" if value is None else f"{100 * value:.1f} %"
    environment.filters["number"] = lambda value: "–" if value is None else f"{value:.4f}"
    return environment.get_template("report_template.html").render(
        facts=facts,
        part=part,
        figures=figures,
        counts=cache.counts,
        cautions=_cautions(facts, part, cache),
        thresholds={name: threshold_table(labels == code, probabilities[:, code]) for code, name in enumerate(names)},
        mistakes=_worst_mistakes(predictions, part, cache),
        skipped=cache.skipped,
        spec_line=cache.spec.describe(),
    )


def threshold_table(positive: np.ndarray, scores: np.ndarray) -> list[dict[str, float | None]]:
    """Return sensitivity, specificity, PPV and NPV at each of :data:`THRESHOLDS`.

    Args:
        positive: bool (n,), whether the row is of the class.
        scores: (n,), its probability.
    """
    rows = []
    for threshold in THRESHOLDS:
        called = scores >= threshold
        hits, alarms = int((called & positive).sum()), int(called.sum())
        quiet, rejected = int((~called & ~positive).sum()), int((~called).sum())
        rows.append(
            {
                "threshold": threshold,
                "sensitivity": _ratio(hits, int(positive.sum())),
                "specificity": _ratio(quiet, int((~positive).sum())),
                "ppv": _ratio(hits, alarms),
                "npv": _ratio(quiet, rejected),
                "missed": int(positive.sum()) - hits,
                "false_alarms": alarms - hits,
            }
        )
    return rows


def _cautions(facts: dict[str, Any], part: str, cache: FeatureCache) -> list[str]:
    cautions = []
    if part == "valid":
        cautions.append("There is no test split. These figures are of the images that chose the epoch: they flatter.")
    images = facts["metrics"][part]["images"]
    if images < _FEW_TEST_IMAGES:
        cautions.append(f"Only {images} {part} images: one image is {100 / images:.1f} percentage points.")
    if not any(cache.columns.group):
        cautions.append(
            "The images have no groups. If one patient has images in two parts, these figures are too good: "
            "name patients with xfeat featurize --groups."
        )
    elif leaks := _groups_in_two_parts(cache):
        cautions.append(f"{leaks} groups (patients) have images in more than one part: these figures are too good.")
    if cache.skipped:
        cautions.append(f"{len(cache.skipped)} images could not be read and take no part; they are listed below.")
    return cautions


def _groups_in_two_parts(cache: FeatureCache) -> int:
    parts_of: dict[str, set[int]] = {}
    for group, split in zip(cache.columns.group, cache.columns.split.tolist(), strict=True):
        if group:
            parts_of.setdefault(group, set()).add(split)
    return sum(len(parts) > 1 for parts in parts_of.values())


def _worst_mistakes(predictions: Predictions, part: str, cache: FeatureCache) -> list[Mistake]:
    names = cache.class_names
    wrong = [
        (float(p.max()), int(row), int(label), int(p.argmax()))
        for row, split, label, p in zip(
            predictions.rows, predictions.split, predictions.labels, predictions.probabilities, strict=True
        )
        if split == part and p.argmax() != label
    ]
    return [
        Mistake(path := cache.columns.path[row], names[label], names[decided], confidence, _picture(cache, path))
        for confidence, row, label, decided in sorted(wrong, reverse=True)[:_WORST]
    ]


def _picture(cache: FeatureCache, path: str) -> str:
    try:
        image = decode((Path(cache.data_root) / path).read_bytes())
    except (OSError, ImageError):
        return ""
    image.thumbnail(_THUMBNAIL, Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
