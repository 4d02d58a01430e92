"""A run on images from elsewhere, and how much worse it is there."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.datasets.layouts import NO_LABEL, Dataset
from xfeat.featurize.errors import DataError, MismatchError, XfeatError
from xfeat.featurize.specs import FeatureSpec
from xfeat.head.data.pooling import pooled
from xfeat.head.data.rows import collected, labelled_blocks
from xfeat.head.evaluation.intervals import difference_interval
from xfeat.head.evaluation.metrics import classification_metrics
from xfeat.head.evaluation.operating_point import OperatingPoint, threshold_metrics
from xfeat.head.evaluation.predictions import Predictions
from xfeat.head.runs.reader import Run

logger = logging.getLogger(__name__)

EXTERNAL = "external"


@dataclass(frozen=True)
class Evaluation:
    """What a run is worth on another set.

    Attributes:
        run: the trained head.
        cache: the set's features.
        predictions: of the images whose class the run knows.
        metrics: as :func:`xfeat.head.evaluation.metrics.classification_metrics` gives them.
        operating_point: the run's threshold on this set, or ``None`` if it has none.
        left_out: images without a label, or of a class that the run does not know.
        seen: images that the run was trained on, by content; ``None`` if its cache or its predictions are gone.
    """

    run: Run
    cache: FeatureCache
    predictions: Predictions
    metrics: dict[str, Any]
    operating_point: dict[str, Any] | None
    left_out: int
    seen: list[str] | None

    @property
    def internal(self) -> dict[str, Any] | None:
        """Return the run's metrics on its own test split, ``None`` if it had none."""
        return self.run.metrics.get("test")

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain JSON types."""
        internal = self.internal
        return {
            "run": str(self.run.folder),
            "data": str(self.cache.path),
            "classes": list(self.run.class_names),
            "images": len(self.predictions),
            "left_out": self.left_out,
            "seen_in_training": self.seen,
            "metrics": self.metrics,
            "operating_point": self.operating_point,
            "internal": internal,
            "drop": None if internal is None else drop_between(internal, self.metrics),
        }


def evaluate_run(run: Run, cache: FeatureCache) -> Evaluation:
    """Measure a run on all labelled images of a cache, whatever their split.

    Classes are matched by name. Temperature and threshold are the run's.

    Raises:
        MismatchError: if the cache's features are not those that the run expects.
        DataError: if no image is of a class that the run knows.
        RunError: if the head's weights are damaged.
    """
    cache = pooled(cache, run.feature_spec.pooling)
    _check_spec(run, cache)
    codes = {name: code for code, name in enumerate(run.class_names)}
    translation = np.array([codes.get(name, NO_LABEL) for name in cache.class_names] + [NO_LABEL], np.int64)
    labels = translation[np.asarray(cache.columns.label)]  # -1, no label, picks the last entry
    rows = np.flatnonzero(labels != NO_LABEL)
    if not len(rows):
        raise _strange_classes(run, cache.class_names, cache.path)
    predictions = _predict(run, cache, rows, labels[rows])
    seen = _seen_in_training(run, cache, rows)
    if seen:
        logger.warning("%d of %d images were in the run's training set: the figures flatter", len(seen), len(rows))
    if left_out := len(cache) - len(rows):
        logger.warning("%d images without a label, or of other classes than the run's, take no part", left_out)
    return Evaluation(
        run=run,
        cache=cache,
        predictions=predictions,
        metrics=classification_metrics(predictions.labels, predictions.probabilities, run.class_names),
        operating_point=_at_threshold(predictions, run.operating_point),
        left_out=left_out,
        seen=seen,
    )


def check_known(run: Run, dataset: Dataset, data: Path) -> None:
    """Find out whether a run can be measured on images, before they are featurized.

    Raises:
        DataError: if none is of a class that the run knows.
    """
    known = {code for code, name in enumerate(dataset.class_names) if name in run.class_names}
    if not any(entry.label in known for entry in dataset.entries):
        raise _strange_classes(run, dataset.class_names, data)


def _strange_classes(run: Run, class_names: Sequence[str], path: Path) -> DataError:
    return DataError(
        "no image is of a class that the run knows",
        path=path,
        expected=", ".join(run.class_names),
        found=", ".join(class_names) or "no labels",
        fix="give the class folders the names that the run uses",
    )


def drop_between(internal: dict[str, Any], external: dict[str, Any]) -> dict[str, Any]:
    """Return how much lower ``accuracy``, ``balanced_accuracy`` and ``auc`` are; the accuracy's with an interval."""
    counts = [(round(part["accuracy"] * part["images"]), part["images"]) for part in (internal, external)]
    aucs = internal["auc"], external["auc"]
    return {
        "accuracy": internal["accuracy"] - external["accuracy"],
        "accuracy_interval": difference_interval(*counts[0], *counts[1]),
        "balanced_accuracy": internal["balanced_accuracy"] - external["balanced_accuracy"],
        "auc": None if None in aucs else aucs[0] - aucs[1],
    }


def _check_spec(run: Run, cache: FeatureCache) -> None:
    if _clean(run.feature_spec).fingerprint == _clean(cache.spec).fingerprint:
        return
    raise MismatchError(
        "the cache's features are not those that the run expects",
        path=cache.path,
        expected=run.feature_spec.describe(),
        found=cache.spec.describe(),
        fix=f"name the images instead of the cache: xhead eval {run.folder} DATA featurizes them as the run demands",
    )


def _clean(spec: FeatureSpec) -> FeatureSpec:
    # The clean view is the same in both, and rounding to half precision is no other feature.
    return replace(spec, views=1, dtype="float32")


def _predict(run: Run, cache: FeatureCache, rows: NDArray[np.int64], labels: NDArray[np.int64]) -> Predictions:
    import torch

    head = run.load_head()
    with torch.inference_mode():
        logits = collected((head(block.clean) for block in labelled_blocks(cache, rows)), len(rows))
    point = run.operating_point
    return Predictions(
        paths=[cache.columns.path[row] for row in rows.tolist()],
        split=[EXTERNAL] * len(rows),
        labels=labels,
        logits=logits.numpy(),
        temperature=run.temperature,
        positive=None if point is None else run.class_names.index(point.positive),
        threshold=0.5 if point is None else point.threshold,
    )


def _at_threshold(predictions: Predictions, point: OperatingPoint | None) -> dict[str, Any] | None:
    if point is None:
        return None
    positive = predictions.labels == predictions.positive
    return {
        "positive": point.positive,
        "threshold": point.threshold,
        EXTERNAL: threshold_metrics(positive, predictions.probabilities[:, predictions.positive], point.threshold),
        "internal": point.test,
    }


def _seen_in_training(run: Run, cache: FeatureCache, rows: NDArray[np.int64]) -> list[str] | None:
    """Return paths of images whose very bytes are among the run's training images, as far as its cache tells."""
    try:
        trained = cache if _is_of(run, cache) else FeatureCache.open(Path(run.cache["path"]))
        splits = {row["path"]: row["split"] for row in run.predictions()}
    except XfeatError as error:
        logger.warning("whether the run was trained on these images cannot be told: %s: %s", error.file, error.what)
        return None
    if not _is_of(run, trained):
        logger.warning(
            "%s has changed since the run was trained on it: images that it does not hold any more are not recognised",
            trained.path,
        )
    known = {
        sha256
        for path, sha256 in zip(trained.columns.path, trained.columns.sha256, strict=True)
        if splits.get(path) in ("train", "valid")
    }
    return [cache.columns.path[row] for row in rows.tolist() if cache.columns.sha256[row] in known]


def _is_of(run: Run, cache: FeatureCache) -> bool:
    return cache.content_sha256 == run.cache["content_sha256"]
