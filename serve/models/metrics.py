"""Metrics for Prometheus: requests, latency by stage, images and their scores, drift, batches, and the models."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, ProcessCollector, generate_latest
from prometheus_client.registry import Collector

from xfeat.featurize.text import printable
from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.inference.results import Prediction, Result, SkippedImage
from xfeat.serve.models.drift import DriftCollector, ModelDrift

_LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
_PROBABILITY_BUCKETS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)
# Of the threshold, so that all models share them: up to 1.0 is in distribution.
_OOD_BUCKETS = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0)
_MODEL_LABELS = ["model", "file", "run", "backbone", "fingerprint", "device"]


class ServerMetrics:
    """The metrics of one server, in their own Prometheus registry.

    Args:
        drift_window: images per model that are compared with the validation images.
        state: returns further metrics whenever they are read.

    Attributes:
        stages: how long an image waited (``queue``), or how long its decoding or its batch (``infer``) took.
        batches: images per batch.
        ready: whether images are accepted.
        refused: requests by the limit that was reached, ``queue`` or ``memory``.
        reloads: by model and result, ``ok`` or ``failed``.
    """

    def __init__(self, drift_window: int = 1000, state: Callable[[], Iterable[Metric]] | None = None) -> None:
        self._registry = within = CollectorRegistry()
        self._drift_window = drift_window
        counter, gauge = partial(Counter, registry=within), partial(Gauge, registry=within)
        histogram = partial(Histogram, registry=within)
        durations = partial(histogram, buckets=_LATENCY_BUCKETS_S)
        self.requests = counter("xfeat_requests", "Requests answered", ["route", "status"])
        self.latency = durations("xfeat_request_seconds", "Time to answer a request", ["route"])
        what = "Time until the batch of an image starts (queue), to decode an image, to compute a batch (infer)"
        stages = durations("xfeat_stage_seconds", what, ["stage"])
        self.images = counter("xfeat_images", "Images classified", ["model", "label"])
        self.skipped = counter("xfeat_images_skipped", "Images without a prediction", ["cause"])
        self.refused = counter("xfeat_requests_refused", "Requests rejected because a limit was reached", ["limit"])
        self.ready = gauge("xfeat_ready", "Whether images are accepted")
        self.batches = histogram("xfeat_batch_images", "Images per batch", buckets=_BATCH_BUCKETS)
        self._pending = gauge("xfeat_queue_images", "Images accepted, without a result yet", ["model"])
        self._model = gauge("xfeat_model_info", "The loaded models", _MODEL_LABELS)
        self._verified = gauge("xfeat_model_verified", "Whether the model file matches its certificate", ["model"])
        self._signed = gauge("xfeat_model_signed", "Whether its signature was required and is valid", ["model"])
        what = "Probability of the most probable class"
        self._top = histogram("xfeat_top_probability", what, ["model"], buckets=_PROBABILITY_BUCKETS)
        what = "Out-of-distribution score, divided by the threshold of the model"
        self._ood = histogram("xfeat_ood_score", what, ["model"], buckets=_OOD_BUCKETS)
        self.reloads = counter("xfeat_reloads", "Reloads of model files", ["model", "result"])
        self._drift: dict[str, ModelDrift] = {}  # of the models that are served
        self._lock = threading.Lock()  # a result that comes after its model has gone must not bring its series back
        for cause in ("image", "model"):
            self.skipped.labels(cause)
        for limit in ("queue", "memory"):
            self.refused.labels(limit)
        self.stages = {stage: stages.labels(stage) for stage in ("queue", "decode", "infer")}
        ProcessCollector(registry=within)
        within.register(DriftCollector(self._drift))
        if state is not None:
            within.register(_Function(state))

    def add_model(self, name: str, predictor: Predictor, device: str, pending: Callable[[], int]) -> None:
        """Report a model, its devices and the length of its queue, instead of an earlier model of this name."""
        metadata = predictor.metadata
        backbone = metadata.feature_spec.backbone
        labels = (name, printable(predictor.path.name), metadata.run, backbone, metadata.fingerprint, device)
        with self._lock:
            self._model.remove_by_labels({"model": name})
            self._model.labels(*labels).set(1)
            self._verified.labels(name).set(predictor.certificate in ("matches", "signed"))
            self._signed.labels(name).set(predictor.certificate == "signed")
            self._pending.labels(name).set_function(pending)
            for label in metadata.class_names:
                self.images.labels(name, label)
            self._top.labels(name)
            if predictor.ood_threshold:
                self._ood.labels(name)
            self._drift[name] = ModelDrift(predictor, self._drift_window)

    def remove_model(self, name: str) -> None:
        """Stop reporting a model, or the failed reloads of a file that is gone."""
        with self._lock:
            self._drift.pop(name, None)
            per_model: tuple[Counter | Gauge | Histogram, ...] = (
                *(self._model, self._verified, self._signed, self._pending),
                *(self.images, self._top, self._ood, self.reloads),
            )
            for metric in per_model:
                metric.remove_by_labels({"model": name})

    def count(self, model: str, predictor: Predictor, results: list[Result]) -> None:
        """Count the images of a request.

        Args:
            model: its name.
            predictor: the version that was used; only the current one's images count for the drift.
            results: of the images.
        """
        with self._lock:
            drift = self._drift.get(model)
            for result in results:
                if isinstance(result, SkippedImage):
                    self.skipped.labels("model" if result.by_model else "image").inc()
                elif drift is not None:
                    self._count_prediction(model, result)
                    if drift.predictor is predictor:
                        drift.add(result)

    def _count_prediction(self, model: str, result: Prediction) -> None:
        self.images.labels(model, result.label).inc()
        self._top.labels(model).observe(max(result.probabilities.values()))
        if result.ood is not None and result.ood_threshold:
            self._ood.labels(model).observe(result.ood / result.ood_threshold)

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _Function(Collector):
    """Metrics that a function returns."""

    def __init__(self, function: Callable[[], Iterable[Metric]]) -> None:
        self._function = function

    def collect(self) -> Iterable[Metric]:
        return self._function()
