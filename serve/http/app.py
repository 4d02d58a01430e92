"""The FastAPI application: all routes and middleware."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from xfeat.serve.http.api_key import RequireKey
from xfeat.serve.http.inference_protocol import protocol_routes
from xfeat.serve.http.measure import MeasureRequests
from xfeat.serve.http.openapi import (
    HEALTH_RESPONSES,
    MODEL_RESPONSES,
    PREDICT_RESPONSES,
    RELOAD_RESPONSES,
    complete_description,
    upload_body,
)
from xfeat.serve.http.page_routes import site_routes
from xfeat.serve.http.preview import preview_routes, preview_threads
from xfeat.serve.http.request_log import LogRequests, LogWriter
from xfeat.serve.http.security_headers import HEADERS, SecurityHeaders
from xfeat.serve.http.service import Service
from xfeat.serve.http.uploads import read_images
from xfeat.serve.inference.heatmap_png import draw_heatmap
from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.inference.results import Result, as_json, split_results

ModelName = Annotated[str | None, Query(description="name of the model; by default the first")]
Heatmap = Annotated[bool, Query(description="whether to return heatmaps")]

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, kw_only=True)
class AccessOptions:
    """Who has access, and how requests are logged.

    Attributes:
        api_key: that clients must send; ``None`` gives every client access.
        log: receives the log fields of each request; ``None`` disables the log.
    """

    api_key: str | None = None
    log: LogWriter | None = None


def build_app(service: Service, access: AccessOptions | None = None) -> FastAPI:
    """Build the application. The end of its lifespan stops the threads of the models and of previews.

    Args:
        service: the models and limits.
        access: API key and log; by default neither.
    """
    access = access or AccessOptions()
    threads = preview_threads()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(service.models.close)
        await run_in_threadpool(threads.shutdown, cancel_futures=True)

    app = FastAPI(
        title="xfeat",
        summary="Predictions of image classifiers. For research only, not a medical device.",
        version=version("xfeat-onnx"),
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    # FastAPI tries the routes in this order, which takes time: the most used come first.
    app.include_router(_predict_routes(service))
    app.include_router(protocol_routes(service))
    app.include_router(site_routes())
    app.include_router(preview_routes(service, threads))
    app.include_router(_state_routes(service))
    app.include_router(_admin_routes(service, access))
    # The one added last receives a request first.
    app.add_middleware(RequireKey, key=access.api_key)
    app.add_middleware(MeasureRequests, metrics=service.metrics)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(LogRequests, write=access.log)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(RequestValidationError, _answer_wrong_parameter)
    app.add_exception_handler(Exception, _answer_server_error)
    complete_description(app, locked=access.api_key is not None)
    return app


def _predict_routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["Predict"])

    form = upload_body(service.spec.max_files)

    @router.post("/predict", summary="Classify image files", responses=PREDICT_RESPONSES, openapi_extra=form)
    async def predict(request: Request, model: ModelName = None, heatmap: Heatmap = False) -> Response:
        served = service.find(model)
        with service.body_limits.admit(request) as body:
            images = await read_images(body, service.spec)
            predictor, results = await service.predict(request, served, images, heatmap=heatmap)
            if heatmap:
                return await run_in_threadpool(_reply, predictor, results, heatmap)
            return _reply(predictor, results, heatmap)

    return router


def _reply(predictor: Predictor, results: list[Result], heatmap: bool) -> JSONResponse:
    body = as_json(predictor.path.name, results)
    predictions, skipped = split_results(results)
    if not predictions:
        by_model = any(image.by_model for image in skipped)
        what = "the model failed on every image" if by_model else "none of the files is a readable image"
        return JSONResponse({"error": what, "skipped": body["skipped"]}, 500 if by_model else 422)
    if heatmap:
        names = predictor.metadata.class_names
        side = predictor.metadata.feature_spec.preprocess.size
        for prediction, entry in zip(predictions, body["predictions"], strict=True):
            entry["heatmap"] = None
            if prediction.heatmap is not None:
                png = draw_heatmap(prediction.heatmap[names.index(prediction.label)], side)
                entry["heatmap"] = base64.b64encode(png).decode()
    return JSONResponse(body)


def _state_routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["State"])

    @router.get("/model", summary="Description of a model, and the limits of a request", responses=MODEL_RESPONSES)
    async def model(model: ModelName = None) -> dict[str, Any]:
        return service.describe_model(service.find(model))

    @router.get("/health", summary="Whether images are accepted", responses=HEALTH_RESPONSES)
    async def health() -> JSONResponse:
        default = service.models.default
        state = {
            "status": "ok" if service.ready else "stopping",
            "model": default.predictor.path.name,
            "device": default.device,
            "queue": sum(model.pending for model in service.models.values()),
            "failed_reloads": service.models.failed_reloads,
        }
        return JSONResponse(state, 200 if service.ready else 503)

    @router.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.render(), media_type=_METRICS_TYPE)

    return router


def _admin_routes(service: Service, access: AccessOptions) -> APIRouter:
    router = APIRouter(tags=["Operation"])

    @router.post("/admin/reload", summary="Load model files that have changed", responses=RELOAD_RESPONSES)
    async def reload() -> JSONResponse:
        if access.api_key is None:
            raise HTTPException(
                403, "reloading over HTTP requires an API key: start with --api-key-file, or send SIGHUP"
            )
        report = await run_in_threadpool(service.models.reload)
        return JSONResponse(asdict(report), 409 if report.kept else 200)

    return router


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)


async def _answer_wrong_parameter(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return JSONResponse({"error": f"parameter {first['loc'][-1]}: {first['msg']}"}, 422)


async def _answer_server_error(request: Request, error: Exception) -> Response:
    # The traceback is in the log and not in the response. This response bypasses the middleware.
    return JSONResponse({"error": "internal server error; see the server's log"}, 500, HEADERS)
