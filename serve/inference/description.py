"""What the page shows of a model: origin, decision rule, test results and readable image formats."""

from __future__ import annotations

from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

from xfeat.featurize.text import printable
from xfeat.serve.inference.predictor import Predictor

_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WebP", "GIF", "JPEG 2000", "PNM", "AVIF")


def describe_model(predictor: Predictor) -> dict[str, Any]:
    """Return the properties of a model as plain JSON types: the part that ``GET /model`` and a static page share."""
    metadata = predictor.metadata
    preprocess = metadata.feature_spec.preprocess
    test = metadata.metrics.get("test") or {}
    matrix = test.get("confusion_matrix")
    most_probable = {"value": test.get("accuracy"), "interval": test.get("accuracy_interval")}
    at_threshold = test.get("at_threshold") or {}
    accuracy = at_threshold.get("accuracy", most_probable)
    return {
        "model": printable(predictor.path.name),
        "run": metadata.run,
        "backbone": metadata.feature_spec.backbone,
        "input_size": preprocess.size,
        "resize": preprocess.resize,
        "crop": preprocess.crop,
        "interpolation": preprocess.interpolation,
        "frames": preprocess.frames,
        "classes": list(metadata.class_names),
        "positive": metadata.positive,
        "threshold": metadata.threshold,
        "temperature": metadata.temperature,
        "ood_threshold": predictor.ood_threshold,
        "ood_kinds": {kind: asdict(found) for kind, found in predictor.ood_kinds.items()},
        "heatmaps": "heatmap" in predictor.model.known_outputs,
        "test_accuracy": accuracy["value"],
        "test_images": sum(map(sum, matrix)) if matrix else None,
        "test_accuracy_interval": accuracy["interval"],
        "test_accuracy_most_probable": most_probable["value"],
        "test_sensitivity": at_threshold.get("sensitivity"),
        "test_specificity": at_threshold.get("specificity"),
        "audit": metadata.audit,
        "elsewhere": metadata.elsewhere,
        "certificate": predictor.certificate,
    }


def readable_formats() -> list[str]:
    """Return the image formats that can be decoded here; with ``pydicom`` installed, DICOM is among them."""
    return [*_FORMATS, *(["DICOM"] if find_spec("pydicom") else [])]
