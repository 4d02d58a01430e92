"""What all routes share, in one object: the model, the queue, the limits, the numbers."""

from __future__ import annotations

import asyncio
from typing import Any

from serve.batching import Batcher
from serve.metrics import Metrics
from serve.predictor import Predictor
from serve.results import Result
from serve.spec import ServeSpec


class Service:
    """A model in service.

    Attributes:
        predictor: the model.
        spec: the limits.
        metrics: the numbers.
        batcher: the queue.
    """

    def __init__(self, predictor: Predictor, spec: ServeSpec) -> None:
        self.predictor = predictor
        self.spec = spec
        self.metrics = Metrics(predictor)
        self.batcher = Batcher(
            predictor,
            max_queue=spec.max_queue,
            max_batch=spec.max_batch,
            batch_wait_s=spec.batch_wait_ms / 1000,
            on_batch=self.metrics.batches.observe,
        )
        self.metrics.watch_queue(lambda: self.batcher.pending)

    @property
    def ready(self) -> bool:
        """Whether images are accepted."""
        return not self.batcher.closed

    @property
    def model_name(self) -> str:
        """The model's name in the Open Inference Protocol: its file name without the suffix."""
        return self.predictor.path.stem

    async def predict(self, images: list[tuple[str, bytes]]) -> list[Result]:
        """Answer the images of one request, off the event loop.

        Raises:
            QueueFullError: if the queue cannot take them.
        """
        futures = self.batcher.submit(images)
        results = list(await asyncio.gather(*map(asyncio.wrap_future, futures)))
        self.metrics.count(results)
        return results

    def describe_model(self) -> dict[str, Any]:
        """Return what the page shows of the model, and the limits it keeps to."""
        metadata = self.predictor.metadata
        test = metadata.metrics.get("test") or {}
        matrix = test.get("confusion_matrix")
        return {
            "model": self.predictor.path.name,
            "run": metadata.run,
            "backbone": metadata.feature_spec.backbone,
            "input_size": metadata.feature_spec.preprocess.size,
            "classes": list(metadata.class_names),
            "positive": metadata.positive,
            "threshold": metadata.threshold,
            "temperature": metadata.temperature,
            "test_accuracy": test.get("accuracy"),
            "test_images": sum(map(sum, matrix)) if matrix else None,
            "device": self.predictor.device,
            "limits": {"max_body_bytes": self.spec.max_body_bytes, "max_files": self.spec.max_files},
        }
