"""Metrics for Prometheus: requests, latency by stage, images, batches, and the loaded models."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.inference.results import Result, SkippedImage
from xfeat.serve.models.batching import STAGES, Observer

_LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
_MODEL_LABELS = ["model", "file", "run", "backbone", "fingerprint", "device"]


def device_of(predictors: Sequence[Predictor]) -> str:
    """Return the devices that the sessions of a model actually run on."""
    return ",".join(dict.fromkeys(predictor.device for predictor in predictors))


class ServerMetrics(Observer):
    """The metrics of one server, in their own Prometheus registry.

    Attributes:
        failed_reloads: names of models whose newest file could not be loaded.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        within = self._registry
        self.requests = Counter("xfeat_requests", "Requests answered", ["route", "status"], registry=within)
        self.latency = Histogram(
            "xfeat_request_seconds", "Time to answer a request", ["route"], buckets=_LATENCY_BUCKETS_S, registry=within
        )
        self.stages = Histogram(
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
        self._reloads = Counter("xfeat_reloads", "Reloads of model files", ["model", "result"], registry=within)
        self._model_labels: dict[str, list[str]] = {}
        self.failed_reloads: set[str] = set()
        for cause in ("image", "model"):
            self.skipped.labels(cause)
        for limit in ("queue", "memory"):
            self.refused.labels(limit)
        self._of_stage = {stage: self.stages.labels(stage) for stage in STAGES}
        ProcessCollector(registry=within)

    def on_batch(self, images: int) -> None:
        """Count a batch."""
        self.batches.observe(images)

    def on_stage(self, stage: str, seconds: float) -> None:
        """Note the time of a stage."""
        self._of_stage[stage].observe(seconds)

    def add_model(self, name: str, predictors: Sequence[Predictor], pending: Callable[[], int]) -> None:
        """Report a model and the length of its queue, instead of an earlier model of this name."""
        self.remove_model(name)
        predictor = predictors[0]
        labels = [
            name,
            predictor.path.name,
            predictor.metadata.run,
            predictor.metadata.feature_spec.backbone,
            predictor.metadata.fingerprint,
            device_of(predictors),
        ]
        self._model_labels[name] = labels
        self._model.labels(*labels).set(1)
        self._pending.labels(name).set_function(pending)
        for label in predictor.metadata.class_names:
            self.images.labels(name, label)

    def remove_model(self, name: str) -> None:
        """Stop reporting a model."""
        if name in self._model_labels:
            self._model.remove(*self._model_labels.pop(name))
            self._pending.remove(name)

    def note_reload(self, name: str, *, ok: bool) -> None:
        """Count a successful or failed reload."""
        self._reloads.labels(name, "ok" if ok else "failed").inc()
        (self.failed_reloads.discard if ok else self.failed_reloads.add)(name)

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
