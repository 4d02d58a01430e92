"""Metrics for Prometheus: requests, latency by stage, images, batches, and the loaded models."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.inference.results import Result, SkippedImage

_LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
_MODEL_LABELS = ["model", "file", "run", "backbone", "fingerprint", "device"]


class ServerMetrics:
    """The metrics of one server, in their own Prometheus registry.

    Attributes:
        stages: how long an image waited (``queue``), or how long its decoding or its batch (``infer``) took.
        batches: images per batch.
        refused: requests by the limit that was reached, ``queue`` or ``memory``.
        reloads: by model and result, ``ok`` or ``failed``.
    """

    def __init__(self) -> None:
        self._registry = within = CollectorRegistry()
        self.requests = Counter("xfeat_requests", "Requests answered", ["route", "status"], registry=within)
        self.latency = Histogram(
            "xfeat_request_seconds", "Time to answer a request", ["route"], buckets=_LATENCY_BUCKETS_S, registry=within
        )
        stages = Histogram(
            "xfeat_stage_seconds",
            "Time until the batch of an image starts (queue), to decode an image, to compute a batch (infer)",
            ["stage"],
            buckets=_LATENCY_BUCKETS_S,
            registry=within,
        )
        self.images = Counter("xfeat_images", "Images classified", ["model", "label"], registry=within)
        self.skipped = Counter("xfeat_images_skipped", "Images without a prediction", ["cause"], registry=within)
        self.refused = Counter(
            "xfeat_requests_refused", "Requests rejected because a limit was reached", ["limit"], registry=within
        )
        self.batches = Histogram("xfeat_batch_images", "Images per batch", buckets=_BATCH_BUCKETS, registry=within)
        self._pending = Gauge("xfeat_queue_images", "Images accepted, without a result yet", ["model"], registry=within)
        self._model = Gauge("xfeat_model_info", "The loaded models", _MODEL_LABELS, registry=within)
        self._verified = Gauge(
            "xfeat_model_verified", "Whether the model file matches its certificate", ["model"], registry=within
        )
        self._signed = Gauge(
            "xfeat_model_signed", "Whether its signature was required and is valid", ["model"], registry=within
        )
        self.reloads = Counter("xfeat_reloads", "Reloads of model files", ["model", "result"], registry=within)
        self._model_labels: dict[str, tuple[str, ...]] = {}
        for cause in ("image", "model"):
            self.skipped.labels(cause)
        for limit in ("queue", "memory"):
            self.refused.labels(limit)
        self.stages = {stage: stages.labels(stage) for stage in ("queue", "decode", "infer")}
        ProcessCollector(registry=within)

    def add_model(self, name: str, predictor: Predictor, device: str, pending: Callable[[], int]) -> None:
        """Report a model, its devices and the length of its queue, instead of an earlier model of this name."""
        self.remove_model(name)
        metadata = predictor.metadata
        backbone = metadata.feature_spec.backbone
        labels = (name, predictor.path.name, metadata.run, backbone, metadata.fingerprint, device)
        self._model_labels[name] = labels
        self._model.labels(*labels).set(1)
        self._verified.labels(name).set(predictor.certificate in ("matches", "signed"))
        self._signed.labels(name).set(predictor.certificate == "signed")
        self._pending.labels(name).set_function(pending)
        for label in metadata.class_names:
            self.images.labels(name, label)

    def remove_model(self, name: str) -> None:
        """Stop reporting a model."""
        if name in self._model_labels:
            self._model.remove(*self._model_labels.pop(name))
            self._verified.remove(name)
            self._signed.remove(name)
            self._pending.remove(name)

    def count(self, model: str, results: list[Result]) -> None:
        """Count the images of a request."""
        for result in results:
            if isinstance(result, SkippedImage):
                self.skipped.labels("model" if result.by_model else "image").inc()
            else:
                self.images.labels(model, result.label).inc()

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)
