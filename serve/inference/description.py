"""What a page shows of a model: where it comes from, how it decides, how it was tested, and which files it reads."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from xfeat.serve.inference.predictor import Predictor

_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WebP")


def model_facts(predictor: Predictor) -> dict[str, Any]:
    """Return the facts of a model as plain JSON types: what ``GET /model`` and a static page have in common."""
    metadata = predictor.metadata
    test = metadata.metrics.get("test") or {}
    matrix = test.get("confusion_matrix")
    return {
        "model": predictor.path.name,
        "run": metadata.run,
        "backbone": metadata.feature_spec.backbone,
        "input_size": metadata.feature_spec.preprocess.size,
        "classes": list(metadata.class_names),
        "positive": metadata.positive,
        "threshold": metadata.threshold,
        "temperature": metadata.temperature,
        "ood_threshold": predictor.ood_threshold,
        "heatmaps": "heatmap" in predictor.session.gives,
        "test_accuracy": test.get("accuracy"),
        "test_images": sum(map(sum, matrix)) if matrix else None,
        "test_accuracy_interval": test.get("accuracy_interval"),
        "audit": metadata.audit,
    }


def readable_formats() -> list[str]:
    """Return the names of the image formats that can be decoded here; DICOM is one where ``pydicom`` is installed."""
    return [*_FORMATS, *(["DICOM"] if find_spec("pydicom") else [])]
