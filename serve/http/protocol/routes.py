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
from xfeat.serve.http.openapi import STOPPING, ModelBody, errors
from xfeat.serve.http.service import Service
from xfeat.serve.http.protocol.requests import HEADER_LENGTH, INFER_BODY, build_response, parse_request, split_body
from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.inference.results import Prediction, Result, split_results
from xfeat.serve.models.registry import ServedModel

_VERSION = "1"
# Smaller requests are parsed faster than they are handed to a thread.
_SMALL_JSON_BYTES = 1 << 14
_INFER_RESPONSES = {
    200: {
        "description": "Tensors, in the JSON or after it",
        "content": {"application/json": {"schema": {"type": "object"}}, "application/octet-stream": {}},
    },
    **errors(
        *(400, 404, 408, 413, 503, 504),
        special={415: "Neither JSON nor binary tensors, or compressed in an unknown way", 500: "The model failed on an image"},
    ),
}


def protocol_routes(service: Service) -> APIRouter:
    """Return the routes below ``/v2``."""
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])

    # The version is optional in every path; there is only one.
    for address in ("/models/{name}", "/models/{name}/versions/{number}"):
        _add_model_routes(router, service, address)

    @router.get("", summary="Name and version of the server")
    async def server() -> dict[str, Any]:
        return {"name": "xfeat", "version": version("xfeat-onnx"), "extensions": ["binary_tensor_data"]}

    @router.get("/health/live", summary="Whether the server is running")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @router.get("/health/ready", summary="Whether images are accepted", responses=STOPPING)
    async def ready() -> JSONResponse:
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    return router


def _add_model_routes(router: APIRouter, service: Service, address: str) -> None:
    def find(request: Request) -> ServedModel:
        model = service.find(request.path_params["name"])
        if request.path_params.get("number", _VERSION) != _VERSION:
            raise HTTPException(404, f"the only version of {model.name} is {_VERSION}")
        return model

    where = {"parameters": _path_parameters(address, service.models.default.name)}

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
        return _describe(find(request))

    @router.get(
        f"{address}/ready",
        summary="Whether the model accepts images",
        responses=STOPPING | errors(404),
        openapi_extra=where,
    )
    async def model_ready(request: Request) -> JSONResponse:
        return JSONResponse({"name": find(request).name, "ready": service.ready}, 200 if service.ready else 503)


async def _infer(service: Service, model: ServedModel, request: Request) -> Response:
    with service.body_limits.admit(request) as body:
        header, tail = split_body(await body.read(), request.headers.get(HEADER_LENGTH))
        if len(header) > _SMALL_JSON_BYTES:  # this takes a while; other requests must not wait for it
            wanted = await run_in_threadpool(parse_request, header, tail, service.spec.max_files)
        else:
            wanted = parse_request(header, tail, service.spec.max_files)
        available = _outputs_of(model.predictor)
        if unknown := sorted(set(wanted.outputs or ()) - set(available)):
            has = ", ".join(sorted(available))
            raise HTTPException(400, f"no output called {unknown[0]!r}; this model has: {has}")
        heatmap = wanted.outputs is None or "heatmap" in wanted.outputs
        images = [(f"image {number}", image) for number, image in enumerate(wanted.images)]
        predictor, results = await service.predict(request, model, images, heatmap=heatmap)
    names = _outputs_of(predictor) if wanted.outputs is None else wanted.outputs
    predictions = _require_all(results)
    arrays = {output: _array(output, predictions) for output in names}
    return build_response({"model_name": model.name, "model_version": _VERSION}, arrays, wanted)


def _outputs_of(predictor: Predictor) -> list[str]:
    return [name for name in Outputs._fields if name in predictor.model.known_outputs]


def _require_all(results: list[Result]) -> list[Prediction]:
    """Return the predictions. If one is missing the whole request fails, because a tensor cannot omit a row."""
    predictions, skipped = split_results(results)
    if skipped:
        worst = next((image for image in skipped if image.by_model), skipped[0])
        raise HTTPException(500 if worst.by_model else 400, f"{worst.path}: {worst.reason}")
    return predictions


def _array(name: str, predictions: list[Prediction]) -> NDArray[np.float32]:
    if name == "probabilities":
        return np.array([list(each.probabilities.values()) for each in predictions], np.float32)
    if name == "ood":
        return np.array([np.nan if each.ood is None else each.ood for each in predictions], np.float32)
    return np.stack([getattr(each, name) for each in predictions])


def _describe(model: ServedModel) -> dict[str, Any]:
    predictor = model.predictor
    outputs = {tensor.name: tensor for tensor in predictor.model.outputs}
    return {
        "name": model.name,
        "versions": [_VERSION],
        "platform": "onnxruntime_onnx",
        # Images may have any size, whatever the graph's input: the server resizes them like files.
        "inputs": [{"name": INPUT, "datatype": "UINT8", "shape": [-1, -1, -1, 3]}],
        "outputs": [
            {"name": output, "datatype": "FP32", "shape": list(outputs[output].shape)}
            for output in _outputs_of(predictor)
        ],
    }


def _path_parameters(address: str, model: str) -> list[dict[str, Any]]:
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}, "example": model}
    number = {"name": "number", "in": "path", "required": True, "schema": {"type": "string", "enum": [_VERSION]}}
    return [name, number] if "{number}" in address else [name]
