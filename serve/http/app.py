"""The FastAPI application: all routes and middleware."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import AsyncIterator
from dataclasses import asdict
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from xfeat.featurize.text import printable
from xfeat.serve.http.access import (
    KEY_HEADER,
    CheckRequests,
    mount_under,
    refuse_other_sites,
    require_key,
    require_own_host,
)
from xfeat.serve.http.middleware import ID_HEADER, SECURITY_HEADERS, CompressResponses, ObserveRequests
from xfeat.serve.http.openapi import STOPPING, PredictBody, describe_key, errors
from xfeat.serve.http.page_routes import site_routes
from xfeat.serve.http.preview import preview_routes, preview_threads
from xfeat.serve.http.protocol.routes import protocol_routes
from xfeat.serve.http.protocol.schema import HEADER_LENGTH
from xfeat.serve.http.request_log import LogWriter
from xfeat.serve.http.service import Service
from xfeat.serve.http.uploads import read_images, upload_body
from xfeat.serve.inference.description import describe_model, readable_formats
from xfeat.serve.inference.heatmap_png import draw_heatmap
from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.inference.results import Result, as_json, split_results
from xfeat.serve.models.registry import Reload
from xfeat.serve.specs import AccessOptions

ModelName = Annotated[str | None, Query(description="name of the model; without it, the default model of the server")]
Heatmap = Annotated[bool, Query(description="whether to return heatmaps")]

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def build_app(service: Service, access: AccessOptions | None = None, *, log: LogWriter | None = None) -> FastAPI:
    """Build the application. The end of its lifespan stops the threads of the models and of previews.

    Args:
        service: the models and limits.
        access: who may ask; by default every client without a web page of another site.
        log: receives the log fields of each request; ``None`` disables the log.
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
        redirect_slashes=False,
    )
    app.state.service = service
    # FastAPI tries the routes in this order, which takes time: the most used come first.
    routers = (
        *(_predict_routes(service), protocol_routes(service), site_routes(), preview_routes(service, threads)),
        *(_state_routes(service), _admin_routes(service, locked=access.api_key is not None)),
    )
    routes = [*app.routes, *(route for router in routers for route in router.routes)]
    for router in routers:
        app.include_router(router)
    _add_middleware(app, access)
    app.add_middleware(ObserveRequests, models=service.models, routes=routes, log=log)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(RequestValidationError, _answer_wrong_parameter)
    app.add_exception_handler(Exception, _answer_server_error)
    return app


def _add_middleware(app: FastAPI, access: AccessOptions) -> None:
    # The one added last receives a request first.
    if access.api_key is not None:
        app.add_middleware(CheckRequests, check=require_key(access.api_key))
        describe_key(app)
    app.add_middleware(CompressResponses)
    app.add_middleware(CheckRequests, check=refuse_other_sites(access.cors_origin))
    if access.cors_origin:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=access.cors_origin,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["Authorization", KEY_HEADER, "Content-Encoding", HEADER_LENGTH, ID_HEADER],
            expose_headers=["Retry-After", HEADER_LENGTH, ID_HEADER],
            allow_private_network=True,
        )
    app.add_middleware(CheckRequests, check=require_own_host(access.allowed_host))
    prefix = mount_under(access.root_path, trust_forwarded=access.trust_forwarded_prefix)
    app.add_middleware(CheckRequests, check=prefix)


def _predict_routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["Predict"])

    @router.post(
        "/predict",
        summary="Classify image files",
        response_model=PredictBody,
        response_description="Predictions; images that cannot be read are listed as skipped",
        responses=errors(
            *(400, 404, 408, 413, 503, 504),
            special={
                415: "Neither a form nor an image file, or compressed in an unknown way",
                422: "A wrong parameter, no files, or none of them is a readable image",
                500: "The model failed on every image",
            },
        ),
        openapi_extra=upload_body(service.spec.max_files),
    )
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
    body = as_json(printable(predictor.path.name), results)
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
    described = errors(404, special={422: "A wrong parameter"})

    @router.get("/model", summary="Description of a model, and the limits of a request", responses=described)
    async def model(model: ModelName = None) -> dict[str, Any]:
        served = service.find(model)
        return describe_model(served.predictor) | {
            "name": served.name,
            "names": list(service.models),
            "default": service.models.default_name,
            "formats": readable_formats(),
            "device": served.device,
            "limits": {"max_body_bytes": service.spec.max_body_bytes, "max_files": service.spec.max_files},
        }

    @router.get("/health", summary="Whether images are accepted", responses=STOPPING)
    async def health() -> JSONResponse:
        models = service.models
        default = models.default
        state = {
            "status": "ok" if service.ready else "stopping",
            "model": default and printable(default.predictor.path.name),
            "default_model": models.default_name,
            "models": list(models),
            "device": default and default.device,
            "queue": sum(model.pending for model in models.values()),
            "failed_reloads": await run_in_threadpool(lambda: models.failed_reloads),
        }
        return JSONResponse(state, 200 if service.ready else 503)

    @router.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(await run_in_threadpool(service.metrics.render), media_type=_METRICS_TYPE)

    return router


def _admin_routes(service: Service, *, locked: bool) -> APIRouter:
    router = APIRouter(tags=["Operation"])
    failed = {
        "model": Reload,
        "description": "A new file could not be loaded; the previous version, if any, still serves",
    }

    @router.post(
        "/admin/reload",
        summary="Load model files that have changed",
        response_model=Reload,
        response_description="Done",
        responses={409: failed, **errors(403)},
    )
    async def reload() -> JSONResponse:
        if not locked:
            raise HTTPException(
                403, "reloading over HTTP requires an API key: start with --api-key-file, or send SIGHUP"
            )
        report = await run_in_threadpool(service.models.reload)
        return JSONResponse(asdict(report), 409 if report.kept else 200)

    return router


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path, what, headers = request.scope["path"][:200], str(error.detail), dict(error.headers or {})
    if request.method == "OPTIONS" and path == "*":
        return Response(status_code=204)
    if error.status_code == 405:
        methods = _methods_at(request)
        headers["Allow"] = ", ".join(methods)
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=headers)
        what = f"{request.method} is not possible at {path}; use {methods[0]}"
    elif error.status_code == 404 and what == "Not Found":  # from the router
        what = f"there is nothing at {path}; /docs lists the routes"
    return JSONResponse({"error": what}, error.status_code, headers)


def _methods_at(request: Request) -> list[str]:
    def is_at(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] == Match.FULL for route in request.app.routes)

    methods = [method for method in ("GET", "POST") if is_at(method)]
    return [*methods, *(["HEAD"] if "GET" in methods else []), "OPTIONS"]


async def _answer_wrong_parameter(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return JSONResponse({"error": f"parameter {first['loc'][-1]}: {first['msg']}"}, 422)


async def _answer_server_error(request: Request, error: Exception) -> Response:
    # The traceback is in the log and not in the response. This response bypasses the middleware.
    return JSONResponse({"error": "internal server error; see the server's log"}, 500, SECURITY_HEADERS)
