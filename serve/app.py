"""All routes together: a FastAPI application that answers for one model."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve.batching import QueueFullError
from serve.metrics import MeasureRequests
from serve.predictor import Predictor
from serve.protocol import protocol_routes
from serve.results import Result, as_json, split_results
from serve.schema import PREDICT_RESPONSES, UPLOAD
from serve.security import HEADERS, SecurityHeaders
from serve.service import Service
from serve.site import site_routes
from serve.spec import ServeSpec
from serve.uploads import read_images

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def build_app(predictor: Predictor, spec: ServeSpec) -> FastAPI:
    """Build the application.

    Its threads start here and end when the application's lifespan does.

    Args:
        predictor: the model that answers.
        spec: the limits.
    """
    service = Service(predictor, spec)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(service.batcher.close)

    app = FastAPI(
        title="xfeat",
        summary="Answers of one image classifier. A research tool, not a medical device.",
        version=version("xfeat"),
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    app.include_router(site_routes())
    app.include_router(_predict_routes(service))
    app.include_router(_state_routes(service))
    app.include_router(protocol_routes(service))
    app.add_middleware(MeasureRequests, metrics=service.metrics)
    app.add_middleware(SecurityHeaders)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(Exception, _answer_defect)
    return app


def _predict_routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["Predict"])

    @router.post("/predict", summary="Classify image files", responses=PREDICT_RESPONSES, openapi_extra=UPLOAD)
    async def predict(request: Request) -> Response:
        images = await read_images(request, service.spec)
        try:
            results = await service.predict(images)
        except QueueFullError as full:
            wait = str(service.spec.retry_after_s)
            raise HTTPException(503, f"too busy: {full}; try again in {wait} s", {"Retry-After": wait}) from full
        return _reply(service.predictor.path.name, results)

    return router


def _reply(model: str, results: list[Result]) -> JSONResponse:
    answer = as_json(model, results)
    if answer["predictions"]:
        return JSONResponse(answer)
    _, skipped = split_results(results)
    by_model = any(image.by_model for image in skipped)
    what = "the model failed on every image" if by_model else "none of the files is a readable image"
    return JSONResponse({"error": what, "skipped": answer["skipped"]}, 500 if by_model else 422)


def _state_routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["State"])

    @router.get("/model", summary="Which model answers, and the limits of a request")
    async def model() -> dict[str, Any]:
        return service.describe_model()

    @router.get("/health", summary="Whether images are accepted")
    async def health() -> JSONResponse:
        state = {
            "status": "ok" if service.ready else "stopping",
            "model": service.predictor.path.name,
            "device": service.predictor.device,
            "queue": service.batcher.pending,
        }
        return JSONResponse(state, 200 if service.ready else 503)

    @router.get("/metrics", summary="Numbers for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.render(), media_type=_METRICS_TYPE)

    return router


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)


async def _answer_defect(request: Request, error: Exception) -> Response:
    # The server logs the traceback; it is no business of the client's. This answer passes no middleware.
    return JSONResponse({"error": "the server failed; its log says why"}, 500, HEADERS)
