"""The interface of a tracker, and what is recorded: settings and final metrics under flat names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from xfeat.featurize.cache.columns import describe_corrections

if TYPE_CHECKING:
    from xfeat.featurize.cache.reader import FeatureCache
    from xfeat.head.runs.reader import Run
    from xfeat.head.specs import HeadSpec, TrainSpec

Parameters = Mapping[str, Any]
Metrics = Mapping[str, float]

_FINAL = ("accuracy", "balanced_accuracy", "loss", "auc", "ece", "brier")
# Characters that class names may contain and MLflow refuses.
_REFUSED_BY_MLFLOW = re.compile(r"[^\w\-. /]")


class Tracker(Protocol):
    """A place where trainings are recorded. Each method may raise any exception."""

    title: str

    def begin(self, name: str, parameters: Parameters, key: str) -> None:
        """Start a record. With a ``key``, resume the record with the same key, if there is one."""

    def record(self, step: int, metrics: Metrics) -> None:
        """Add the metrics of a step, such as an epoch."""

    def child(self, name: str, parameters: Parameters, metrics: Metrics) -> None:
        """Add a finished child record, unless there is one of that name."""

    def end(self, metrics: Metrics, files: Sequence[Path]) -> None:
        """Close the record with its final metrics, and with files and folders to store."""

    def fail(self, *, killed: bool) -> None:
        """Close the record of a training that ended early."""


def cache_parameters(cache: FeatureCache) -> dict[str, Any]:
    """Return the settings of the features as one flat dict: ``backbone``, ``size``, ``pooling``, …, and their cache."""
    features = cache.spec.to_dict()
    return {
        **features.pop("preprocess"),
        **features,
        "classes": ", ".join(cache.class_names),
        "cache": str(cache.path.resolve()),
        "cache_sha256": cache.content_sha256,
        "corrections": describe_corrections(cache.corrections) or "none",
    }


def head_parameters(head: HeadSpec, train: TrainSpec) -> dict[str, Any]:
    """Return the settings of a head as one flat dict, with widths as typed on the command line."""
    return {**head.to_dict(), "hidden": ",".join(map(str, head.hidden)) or "linear", **train.to_dict()}


def final_metrics(run: Run) -> dict[str, float]:
    """Select the final metrics of a run: ``test/accuracy``, ``test/sensitivity/covid``, …

    Validation metrics are ``valid/final_…``: with the temperature applied, unlike those of the epochs.
    """
    found: dict[str, float] = {"best_epoch": run.best_epoch, "temperature": run.temperature}
    for part, start in (("valid", "valid/final_"), ("test", "test/")):
        if part in run.metrics:
            found |= part_metrics(run.metrics[part], start)
    if run.operating_point is not None:
        found["threshold"] = run.operating_point.threshold
    return found


def part_metrics(metrics: Mapping[str, Any], start: str) -> dict[str, float]:
    """Select from :func:`xfeat.head.evaluation.metrics.classification_metrics`; names are prefixed by ``start``."""
    found = {start + name: metrics[name] for name in _FINAL}
    for name, row in metrics["classes"].items():
        for figure in ("sensitivity", "specificity"):
            found[f"{start}{figure}/{_REFUSED_BY_MLFLOW.sub('_', name)}"] = row[figure]
    return {name: value for name, value in found.items() if value is not None}
