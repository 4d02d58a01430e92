"""Open Inference Protocol, version 2: health, model description, inference.

Source: https://github.com/open-inference/open-inference-protocol, specification/protocol/inference_rest.md
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from xfeat.export.model.interface import INPUT, Outputs
from xfeat.serve.http.openapi import DESCRIBED_RESPONSES, INFER, INFER_RESPONSES, MODEL_RESPONSES, READY_RESPONSES
from xfeat.serve.http.service import Service
from xfeat.serve.http.tensors import InferRequest, TensorError, TooManyImagesError, encode_response, parse_request
from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.inference.results import Prediction, Result, split_results

HEADER_LENGTH = "Inference-Header-Content-Length"
_VERSION = "1"
# Smaller requests are parsed faster than they are handed to a thread.
_SMALL_JSON_BYTES = 1 << 14


def protocol_routes(service: Service) -> APIRouter:
    """Return the routes below ``/v2``."""
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])

    _add_model_routes(router, service)

    @router.get("", summary="Name and version of the server")
    async def server() -> dict[str, Any]:
        return {"name": "xfeat", "version": version("xfeat-onnx"), "extensions": ["binary_tensor_data"]}

    @router.get("/health/live", summary="Whether the server is running")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @router.get("/health/ready", summary="Whether images are accepted", responses=READY_RESPONSES)
    async def ready() -> JSONResponse:
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    return router


def _add_model_routes(router: APIRouter, service: Service) -> None:
    for middle in ("/models/{name}", "/models/{name}/versions/{number}"):
        # The version is optional in every path; there is only one.
        _add_routes_below(router, service, middle)


def _add_routes_below(router: APIRouter, service: Service, address: str) -> None:
    def check(request: Request) -> str:
        name: str = request.path_params["name"]
        service.find(name)
        if request.path_params.get("number", _VERSION) != _VERSION:
            raise HTTPException(404, f"the only version of {name} is {_VERSION}")
        return name

    where = {"parameters": _path_parameters(address, service.models.default.name)}

    @router.post(
        f"{address}/infer",
        summary="Classify images given as tensors",
        responses=INFER_RESPONSES,
        openapi_extra=where | INFER,
    )
    async def infer(request: Request) -> Response:
        return await _infer(service, check(request), request)

    @router.get(address, summary="Inputs and outputs of the model", responses=DESCRIBED_RESPONSES, openapi_extra=where)
    async def model(request: Request) -> dict[str, Any]:
        name = check(request)
        return _describe(name, service.find(name).predictor)

    @router.get(
        f"{address}/ready",
        summary="Whether the model accepts images",
        responses=READY_RESPONSES | MODEL_RESPONSES,
        openapi_extra=where,
    )
    async def model_ready(request: Request) -> JSONResponse:
        name = check(request)
        return JSONResponse({"name": name, "ready": service.ready}, 200 if service.ready else 503)


async def _infer(service: Service, name: str, request: Request) -> Response:
    if request.headers.get("content-encoding", "identity") != "identity":
        raise HTTPException(415, "compressed requests are not supported", {"Connection": "close"})
    with service.body_limits.admit(request) as body:
        async with body.time_limit():
            content = await body.read()
        try:
            wanted = await _parse(content, _header_length(request), service.spec.max_files)
        except TooManyImagesError as error:
            raise HTTPException(413, str(error)) from error
        except TensorError as error:
            raise HTTPException(400, str(error)) from error
        model = service.find(name)
        _check_outputs(wanted, model.predictor)
        heatmap = wanted.outputs is None or "heatmap" in wanted.outputs
        images = [(f"image {number}", image) for number, image in enumerate(wanted.images)]
        predictor, results = await service.predict(request, model, images, heatmap=heatmap)
    arrays = _arrays(_require_all(results), wanted, predictor)
    reply, header = encode_response({"model_name": name, "model_version": _VERSION}, arrays, wanted)
    if header is None:
        return Response(reply, media_type="application/json")
    return Response(reply, headers={HEADER_LENGTH: str(header)}, media_type="application/octet-stream")


async def _parse(content: bytes, header_bytes: int | None, max_images: int) -> InferRequest:
    if (len(content) if header_bytes is None else header_bytes) <= _SMALL_JSON_BYTES:
        return parse_request(content, header_bytes, max_images)
    # Parsing large JSON takes a while; other requests must not wait for it.
    return await run_in_threadpool(parse_request, content, header_bytes, max_images)


def _header_length(request: Request) -> int | None:
    text = request.headers.get(HEADER_LENGTH)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 16):
        raise HTTPException(400, f"{HEADER_LENGTH} must be a number")
    return int(text)


def _check_outputs(wanted: InferRequest, predictor: Predictor) -> None:
    available = predictor.model.known_outputs
    if unknown := sorted(set(wanted.outputs or ()) - available):
        raise HTTPException(400, f"no output called {unknown[0]!r}; this model has: {', '.join(sorted(available))}")


def _require_all(results: list[Result]) -> list[Prediction]:
    """Return the predictions. If one is missing the whole request fails, because a tensor cannot omit a row."""
    predictions, skipped = split_results(results)
    if skipped:
        worst = next((image for image in skipped if image.by_model), skipped[0])
        raise HTTPException(500 if worst.by_model else 400, f"{worst.path}: {worst.reason}")
    return predictions


def _arrays(
    predictions: list[Prediction], wanted: InferRequest, predictor: Predictor
) -> dict[str, NDArray[np.float32]]:
    available = [name for name in Outputs._fields if name in predictor.model.known_outputs]
    return {name: _array(name, predictions) for name in (available if wanted.outputs is None else wanted.outputs)}


def _array(name: str, predictions: list[Prediction]) -> NDArray[np.float32]:
    if name == "probabilities":
        return np.array([list(each.probabilities.values()) for each in predictions], np.float32)
    if name == "ood":
        return np.array([np.nan if each.ood is None else each.ood for each in predictions], np.float32)
    return np.stack([getattr(each, name) for each in predictions])


def _describe(name: str, predictor: Predictor) -> dict[str, Any]:
    outputs = {tensor.name: tensor for tensor in predictor.model.outputs}
    return {
        "name": name,
        "versions": [_VERSION],
        "platform": "onnxruntime_onnx",
        # Images may have any size, whatever the graph's input: the server resizes them like files.
        "inputs": [{"name": INPUT, "datatype": "UINT8", "shape": [-1, -1, -1, 3]}],
        "outputs": [
            {"name": output, "datatype": "FP32", "shape": list(outputs[output].shape)}
            for output in Outputs._fields
            if output in predictor.model.known_outputs
        ],
    }


def _path_parameters(address: str, model: str) -> list[dict[str, Any]]:
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}, "example": model}
    number = {"name": "number", "in": "path", "required": True, "schema": {"type": "string", "enum": [_VERSION]}}
    return [name, number] if "{number}" in address else [name]
