"""What is recorded of a training: its settings and its final metrics, as flat names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xfeat.featurize.cache.reader import FeatureCache
    from xfeat.head.specs import HeadSpec, TrainSpec


_FINAL = ("accuracy", "balanced_accuracy", "loss", "auc", "ece", "brier")


# Other characters are refused by MLflow; names of classes may hold them.
_ODD = re.compile(r"[^\w\-. /]")


def cache_parameters(cache: FeatureCache) -> dict[str, Any]:
    """Return what the features are, flat: ``backbone``, ``size``, ``pooling``, …, and which cache holds them."""
    features = cache.spec.to_dict()
    return {
        **features.pop("preprocess"),
        **features,
        "classes": ", ".join(cache.class_names),
        "cache": str(cache.path.resolve()),
        "cache_sha256": cache.content_sha256,
    }


def head_parameters(head: HeadSpec, train: TrainSpec) -> dict[str, Any]:
    """Return the settings of a head, flat, with widths as they are typed."""
    return {**head.to_dict(), "hidden": ",".join(map(str, head.hidden)) or "linear", **train.to_dict()}


def final_metrics(facts: Mapping[str, Any]) -> dict[str, float]:
    """Pick the final figures out of the content of run.json: ``test/accuracy``, ``test/sensitivity/covid``, …

    Those of the validation images are called ``valid/final_…``: after the temperature, not one epoch of a curve.
    """
    found: dict[str, float] = {"best_epoch": facts["best_epoch"], "temperature": facts["temperature"]}
    for part, start in (("valid", "valid/final_"), ("test", "test/")):
        if part in facts["metrics"]:
            found |= part_metrics(facts["metrics"][part], start)
    if (point := facts["operating_point"]) is not None:
        found["threshold"] = point["threshold"]
    return found


def part_metrics(metrics: Mapping[str, Any], start: str) -> dict[str, float]:
    """Pick the figures of one part out of what :func:`xfeat.head.evaluation.metrics.classification_metrics` gives."""
    found = {start + name: metrics[name] for name in _FINAL}
    for name, row in metrics["classes"].items():
        for figure in ("sensitivity", "specificity"):
            found[f"{start}{figure}/{_ODD.sub('_', name)}"] = row[figure]
    return {name: value for name, value in found.items() if value is not None}
