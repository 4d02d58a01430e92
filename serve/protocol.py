"""Open Inference Protocol, version 2: health and model description.

Source: https://github.com/open-inference/open-inference-protocol, specification/protocol/inference_rest.md
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from serve.service import Service
from serve.session import Tensor

_DATATYPES = {"tensor(uint8)": "UINT8", "tensor(float)": "FP32", "tensor(double)": "FP64", "tensor(int64)": "INT64"}


def protocol_routes(service: Service) -> APIRouter:
    """Return the routes below ``/v2``."""
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])

    def find(name: str) -> None:
        if name != service.model_name:
            raise HTTPException(404, f"no model called {name}; this server has {service.model_name}")

    @router.get("", summary="Name and version of the server")
    async def server() -> dict[str, Any]:
        return {"name": "xfeat", "version": version("xfeat"), "extensions": []}

    @router.get("/health/live", summary="Whether the process answers")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @router.get("/health/ready", summary="Whether images are accepted")
    async def ready() -> JSONResponse:
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    @router.get("/models/{name}", summary="Inputs and outputs of the model")
    async def model(name: str) -> dict[str, Any]:
        find(name)
        session = service.predictor.session
        return {
            "name": name,
            "versions": ["1"],
            "platform": "onnxruntime_onnx",
            "inputs": [_describe(tensor) for tensor in session.inputs],
            "outputs": [_describe(tensor) for tensor in session.outputs],
        }

    @router.get("/models/{name}/ready", summary="Whether the model accepts images")
    async def model_ready(name: str) -> JSONResponse:
        find(name)
        return JSONResponse({"name": name, "ready": service.ready}, 200 if service.ready else 503)

    return router


def _describe(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": _DATATYPES.get(tensor.kind, tensor.kind), "shape": list(tensor.shape)}
