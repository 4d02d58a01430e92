"""Open Inference Protocol, version 2: health, model description, inference, and extensions that Triton's clients use.

Source: https://github.com/open-inference/open-inference-protocol, specification/protocol/inference_rest.md; Triton,
docs/protocol/extension_model_configuration.md, extension_statistics.md and extension_model_repository.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from xfeat.export.model.interface import DECISION, OOD, PROBABILITIES
from xfeat.serve.http.openapi import STOPPING, ModelBody, errors
from xfeat.serve.http.protocol.describe import VERSION, describe_config, describe_model, describe_outputs
from xfeat.serve.http.protocol.requests import parse_request, split_body
from xfeat.serve.http.protocol.responses import build_response, check_outputs
from xfeat.serve.http.protocol.schema import HEADER_LENGTH, INFER_BODY, path_parameters
from xfeat.serve.http.service import Service
from xfeat.serve.inference.results import Prediction, Result, split_results
from xfeat.serve.models.registry import ServedModel

_EXTENSIONS = ["binary_tensor_data", "classification", "model_configuration", "statistics"]
# Smaller requests and responses are handled faster than they are handed to a thread.
_SMALL_JSON_BYTES = 1 << 14
_SMALL_OUTPUT_BYTES = 1 << 14
_LARGE_TAIL_BYTES = 1 << 20
# A page of another site can send these without being asked by the browser whether it may, so they cannot mean JSON.
_FORM_TYPES = {"application/x-www-form-urlencoded", "multipart/form-data", "text/plain"}
_INFER_RESPONSES = {
    200: {
        "description": "Tensors, in the JSON or after it",
        "content": {"application/json": {"schema": {"type": "object"}}, "application/octet-stream": {}},
    },
    **errors(
        *(400, 404, 408, 413, 503, 504),
        special={
            415: "Neither JSON nor binary tensors, or compressed in an unknown way",
            500: "The model failed on an image",
        },
    ),
}


def protocol_routes(service: Service) -> APIRouter:
    """Return the routes below ``/v2``."""
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])

    @router.get("/models/stats", summary="Counts and times of all models")  # first: "stats" could be a model's name
    async def stats() -> dict[str, Any]:
        return _statistics(*service.models.values())

    # The version is optional in every path; there is only one.
    for address in ("/models/{name}", "/models/{name}/versions/{number}"):
        _add_model_routes(router, service, address)

    @router.get("", summary="Name and version of the server")
    async def server() -> dict[str, Any]:
        return {
            "name": "xfeat",
            "version": version("xfeat-onnx"),
            "extensions": _EXTENSIONS,
            "default_model": service.models.default_name,
        }

    @router.get("/health/live", summary="Whether the server is running")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @router.get("/health/ready", summary="Whether images are accepted", responses=STOPPING)
    async def ready() -> JSONResponse:
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    @router.post("/repository/index", summary="Names and states of the models")
    async def index() -> list[dict[str, str]]:
        state, reason = ("READY", "") if service.ready else ("UNAVAILABLE", "the server is stopping")
        return [{"name": name, "version": VERSION, "state": state, "reason": reason} for name in service.models]

    return router


def _add_model_routes(router: APIRouter, service: Service, address: str) -> None:
    def find(request: Request) -> ServedModel:
        model = service.find(request.path_params["name"])
        if request.path_params.get("number", VERSION) != VERSION:
            raise HTTPException(404, f"the only version of {model.name} is {VERSION}")
        return model

    where = {"parameters": path_parameters(address, service.models.default_name)}

    @router.post(
        f"{address}/infer",
        summary="Classify images given as tensors",
        responses=_INFER_RESPONSES,
        openapi_extra=where | INFER_BODY,
    )
    async def infer(request: Request) -> Response:
        return await _infer(service, find(request), request)

    @router.get(
        address,
        summary="Inputs and outputs of the model",
        response_model=ModelBody,
        response_description="As defined by the protocol",
        responses=errors(404),
        openapi_extra=where,
    )
    async def model(request: Request) -> dict[str, Any]:
        return describe_model(find(request))

    @router.get(
        f"{address}/ready",
        summary="Whether the model accepts images",
        responses=STOPPING | errors(404),
        openapi_extra=where,
    )
    async def model_ready(request: Request) -> JSONResponse:
        return JSONResponse({"name": find(request).name, "ready": service.ready}, 200 if service.ready else 503)

    @router.get(
        f"{address}/config", summary="Configuration as Triton has it", responses=errors(404), openapi_extra=where
    )
    async def config(request: Request) -> dict[str, Any]:
        return describe_config(find(request), service.spec.max_files)

    @router.get(f"{address}/stats", summary="Counts and times", responses=errors(404), openapi_extra=where)
    async def stats(request: Request) -> dict[str, Any]:
        return _statistics(find(request))


def _statistics(*models: ServedModel) -> dict[str, Any]:
    return {"model_stats": [{"name": model.name, "version": VERSION, **model.statistics.to_dict()} for model in models]}


async def _infer(service: Service, model: ServedModel, request: Request) -> Response:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in _FORM_TYPES:
        raise HTTPException(415, f"Content-Type must be application/json or application/octet-stream, not {kind}")
    with service.body_limits.admit(request) as body:
        header, tail = split_body(await body.read(), request.headers.get(HEADER_LENGTH))
        # This takes a while; other requests must not wait for it.
        if len(header) > _SMALL_JSON_BYTES or len(tail) > _LARGE_TAIL_BYTES:
            async with service.parsing:
                wanted = await run_in_threadpool(parse_request, header, tail, service.spec.max_files)
        else:
            wanted = parse_request(header, tail, service.spec.max_files)
        check_outputs(wanted.outputs or {}, describe_outputs(model.predictor))
        if wanted.threshold is not None and model.predictor.metadata.positive is None:
            raise HTTPException(400, f"{model.name} has no threshold: it predicts the most probable class")
        heatmap = wanted.outputs is None or "heatmap" in wanted.outputs
        images = [(f"image {number}", image) for number, image in enumerate(wanted.images)]
        predictor, results = await service.predict(request, model, images, heatmap=heatmap)
    names = describe_outputs(predictor) if wanted.outputs is None else wanted.outputs
    predictions = _require_all(results)
    decide = partial(predictor.metadata.decide, threshold=wanted.threshold)
    arrays = {output: _array(output, predictions, predictor.metadata.class_names, decide) for output in names}
    identity = {"model_name": model.name, "model_version": VERSION}
    classes = predictor.metadata.class_names
    if sum(array.nbytes for array in arrays.values()) > _SMALL_OUTPUT_BYTES:
        return await run_in_threadpool(build_response, identity, arrays, wanted, classes)
    return build_response(identity, arrays, wanted, classes)


def _require_all(results: list[Result]) -> list[Prediction]:
    """Return the predictions. If one is missing the whole request fails, because a tensor cannot omit a row."""
    predictions, skipped = split_results(results)
    if skipped:
        worst = next((image for image in skipped if image.by_model), skipped[0])
        raise HTTPException(500 if worst.by_model else 400, f"{worst.path}: {worst.reason}")
    return predictions


def _array(
    name: str, predictions: list[Prediction], class_names: Sequence[str], decide: Callable[[list[float]], str]
) -> NDArray[Any]:
    probabilities = [list(each.probabilities.values()) for each in predictions]
    if name == PROBABILITIES:
        return np.array(probabilities, np.float32)
    if name == DECISION:
        return np.array([class_names.index(decide(row)) for row in probabilities], np.int64)
    if name == OOD:
        return np.array([np.nan if each.ood is None else each.ood for each in predictions], np.float32)
    return np.stack([getattr(each, name) for each in predictions])
