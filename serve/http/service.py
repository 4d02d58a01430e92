"""What all routes share, in one object: models, limits, metrics, and the prediction of a request's images."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request

from xfeat.serve.http.limits.bodies import CLIENT_DISCONNECTED, BodyLimits, too_busy
from xfeat.serve.http.request_log import log_fields
from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.inference.reading import ImageContent
from xfeat.serve.inference.results import Prediction, Result
from xfeat.serve.models.batching import QueueFullError
from xfeat.serve.models.registry import ModelRegistry, ServedModel

T = TypeVar("T")


class Service:
    """The state of one server.

    Attributes:
        models: by name.
        spec: the limits.
        metrics: of the server.
        body_limits: counts the bytes of requests.
        parsing: held while a large request is parsed: one at a time, so that memory and others' waits stay small.
        stopping: whether the server was told to stop.
    """

    def __init__(self, models: ModelRegistry) -> None:
        self.models = models
        self.spec = models.spec
        self.metrics = models.metrics
        self.body_limits = BodyLimits(models.spec, models.metrics)
        self.parsing = asyncio.Lock()
        self.stopping = False
        self.metrics.ready.set_function(lambda: self.ready)

    @property
    def ready(self) -> bool:
        """Whether images are accepted."""
        return not (self.stopping or self.models.closed)

    def find(self, name: str | None) -> ServedModel:
        """Return a model by name, or the default one.

        Raises:
            HTTPException: 404 if there is no model of this name, or the default one was removed.
        """
        model = self.models.default if name is None else self.models.get(name)
        if model is not None:
            return model
        has = f"this server has: {', '.join(self.models)}"
        if name is None:
            name = self.models.default_name
            raise HTTPException(404, f"the default model {name} was removed; name another with ?model=NAME; {has}")
        raise HTTPException(404, f"no model called {name}; {has}")

    async def predict(
        self, request: Request, model: ServedModel, images: Sequence[tuple[str, ImageContent]], *, heatmap: bool = False
    ) -> tuple[Predictor, list[Result]]:
        """Classify the images of one request, outside the event loop.

        Returns:
            The model version that was used, and one result per image.

        Raises:
            HTTPException: 503 if the images do not fit into the queue, 504 if the results took too long, 499 if the
                client has disconnected; its images are then cancelled.
        """
        try:
            predictor, futures = model.submit(images, heatmap=heatmap)
        except QueueFullError as full:
            self.metrics.refused.labels("queue").inc()
            raise too_busy(self.spec, f"too busy: {full}") from full
        log_fields(request.scope).update(images=len(images))
        gathered: asyncio.Future[list[Result]] = asyncio.gather(*map(asyncio.wrap_future, futures))
        statistics, started, outcome = model.statistics, time.monotonic(), "fail"
        try:
            results = await self.wait(request, gathered)
            outcome = "success" if any(isinstance(result, Prediction) for result in results) else "fail"
        finally:
            statistics.add(outcome, time.monotonic() - started)
        self.metrics.count(model.name, predictor, results)
        return predictor, results

    async def wait(self, request: Request, result: asyncio.Future[T]) -> T:
        """Wait for a result until the time limit, or until the client disconnects; then cancel it.

        Raises:
            HTTPException: 504 if it took too long, 499 if the client has disconnected.
        """
        disconnected = asyncio.create_task(_until_disconnected(request))
        try:
            either: set[asyncio.Future[Any]] = {result, disconnected}
            await asyncio.wait(either, timeout=self.spec.answer_timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if result.done():
                return result.result()
            result.cancel()  # what has not started is not computed
            with contextlib.suppress(asyncio.CancelledError):
                await result
            if disconnected.done():
                raise HTTPException(CLIENT_DISCONNECTED, "the client disconnected")
            raise HTTPException(504, f"no result within {self.spec.answer_timeout_s:g} seconds")
        finally:
            result.cancel()
            disconnected.cancel()


async def _until_disconnected(request: Request) -> None:
    """Return when the client has closed its connection. The body must have been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
