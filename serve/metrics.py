"""What a monitoring system may ask: requests, latency, images, batches, and which model answers."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.predictor import Predictor
from serve.results import Result, SkippedImage

_LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The numbers of one server, in a registry of its own."""

    def __init__(self, predictor: Predictor) -> None:
        self._registry = CollectorRegistry()
        within = self._registry
        self.requests = Counter("xfeat_requests", "Requests answered", ["route", "status"], registry=within)
        self.latency = Histogram(
            "xfeat_request_seconds", "Time to answer a request", ["route"], buckets=_LATENCY_BUCKETS_S, registry=within
        )
        self.images = Counter("xfeat_images", "Images answered", ["label"], registry=within)
        self.skipped = Counter("xfeat_images_skipped", "Images without an answer", ["cause"], registry=within)
        self.batches = Histogram("xfeat_batch_images", "Images per batch", buckets=_BATCH_BUCKETS, registry=within)
        self._pending = Gauge("xfeat_queue_images", "Images accepted and not yet answered", registry=within)
        for label in predictor.metadata.class_names:
            self.images.labels(label)
        for cause in ("image", "model"):
            self.skipped.labels(cause)
        Info("xfeat_model", "The model that answers", registry=within).info(
            {
                "file": predictor.path.name,
                "run": predictor.metadata.run,
                "backbone": predictor.metadata.feature_spec.backbone,
                "fingerprint": predictor.metadata.fingerprint,
                "device": predictor.device,
            }
        )
        ProcessCollector(registry=within)

    def count(self, results: list[Result]) -> None:
        """Count the images of a request."""
        for result in results:
            if isinstance(result, SkippedImage):
                self.skipped.labels("model" if result.by_model else "image").inc()
            else:
                self.images.labels(result.label).inc()

    def watch_queue(self, pending: Callable[[], int]) -> None:
        """Report this number as the length of the queue."""
        self._pending.set_function(pending)

    def render(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)


class MeasureRequests:
    """Middleware that counts and times requests by route. Addresses that are no route count as one."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and note how it ended."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500
        started = time.perf_counter()

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note_status)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.latency.labels(route).observe(time.perf_counter() - started)
