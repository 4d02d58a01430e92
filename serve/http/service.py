"""What all routes share, in one object: the models, the limits, the numbers, and how a request gets its answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request

from xfeat.serve.http.body_limits import Intake
from xfeat.serve.http.request_log import note
from xfeat.serve.inference.description import model_facts, readable_formats
from xfeat.serve.inference.predictor import ImageContent, Predictor
from xfeat.serve.inference.results import Result
from xfeat.serve.models.batching import QueueFullError
from xfeat.serve.models.registry import Models, ServedModel
from xfeat.serve.specs import ServeSpec

T = TypeVar("T")

# Nobody reads it: the client has gone. It is the customary number for logs and metrics.
_CLIENT_GONE = 499


class Service:
    """Models in service.

    Attributes:
        models: by name.
        spec: the limits.
        metrics: the numbers.
        intake: counts the bytes that come in.
        stopping: the server was told to stop.
    """

    def __init__(self, models: Models, spec: ServeSpec) -> None:
        self.models = models
        self.spec = spec
        self.metrics = models.metrics
        self.intake = Intake(spec, models.metrics)
        self.stopping = False

    @property
    def ready(self) -> bool:
        """Whether images are accepted."""
        return not self.stopping and all(model.ready for model in self.models.values())

    def find(self, name: str | None) -> ServedModel:
        """Return a model by name, or the default one.

        Raises:
            HTTPException: 404 if there is none of this name.
        """
        if name is None:
            return self.models.default
        if name not in self.models:
            raise HTTPException(404, f"no model called {name}; this server has {', '.join(self.models)}")
        return self.models[name]

    async def predict(
        self, request: Request, model: ServedModel, images: Sequence[tuple[str, ImageContent]], *, heatmap: bool = False
    ) -> tuple[Predictor, list[Result]]:
        """Answer the images of one request, off the event loop.

        Returns:
            The model that answered, and a result an image.

        Raises:
            HTTPException: 503 if the queue cannot take them, 504 if the answers took too long; 499 if the client has
                gone, whose images are then given up.
        """
        try:
            predictor, futures = model.submit(images, heatmap=heatmap)
        except QueueFullError as full:
            self.metrics.refused.labels("queue").inc()
            wait = str(self.spec.retry_after_s)
            raise HTTPException(503, f"too busy: {full}; try again in {wait} s", {"Retry-After": wait}) from full
        note(request, images=len(images), model=model.name)
        answers: asyncio.Future[list[Result]] = asyncio.gather(*map(asyncio.wrap_future, futures))
        results = await self.wait(request, answers)
        self.metrics.count(model.name, results)
        return predictor, results

    async def wait(self, request: Request, answer: asyncio.Future[T]) -> T:
        """Wait for the answer to a request, as long as it may take and its client is there; then give it up.

        Raises:
            HTTPException: 504 if it took too long; 499 if the client has gone.
        """
        gone = asyncio.create_task(_until_gone(request))
        try:
            either: set[asyncio.Future[Any]] = {answer, gone}
            await asyncio.wait(either, timeout=self.spec.answer_timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            answer.cancel()  # what has not started is not computed
            with contextlib.suppress(asyncio.CancelledError):
                await answer
            if gone.done():
                raise HTTPException(_CLIENT_GONE, "the client went away")
            raise HTTPException(504, f"no answer within {self.spec.answer_timeout_s:g} seconds")
        finally:
            answer.cancel()
            gone.cancel()

    def describe_model(self, model: ServedModel) -> dict[str, Any]:
        """Return what the page shows of a model, and the limits it keeps to."""
        predictor = model.predictor
        return model_facts(predictor) | {
            "name": model.name,
            "names": list(self.models),
            "formats": readable_formats(),
            "device": model.device,
            "limits": {"max_body_bytes": self.spec.max_body_bytes, "max_files": self.spec.max_files},
        }


async def _until_gone(request: Request) -> None:
    """Return when the client has closed its connection; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
