"""Schemas of requests and responses, for ``/openapi.json``."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, Field

from xfeat.export.model.interface import INPUT, Outputs
from xfeat.serve.http.api_key import KEY_HEADER, PUBLIC_PATHS
from xfeat.serve.http.uploads import FIELD


class PredictionBody(BaseModel):
    """The prediction for one image."""

    path: str = Field(description="The name the file was uploaded with")
    label: str = Field(description="The predicted class; if the model has a threshold, it is applied")
    probabilities: dict[str, float] = Field(description="Of each class; they add up to 1")
    ood: float | None = Field(description="Out-of-distribution score, if the model has one")
    ood_threshold: float | None = Field(description="With a higher score the image counts as out of distribution")
    in_distribution: bool | None = Field(
        description="Whether the score is within the threshold; null without a score or a threshold"
    )
    heatmap: str | None = Field(
        default=None, description="If requested: a PNG in base64, to be stretched over the image"
    )


class SkippedBody(BaseModel):
    """An image without a prediction."""

    path: str
    reason: str


class PredictBody(BaseModel):
    """The predictions for one request, in the order of its files."""

    model: str
    predictions: list[PredictionBody]
    skipped: list[SkippedBody]


class ErrorBody(BaseModel):
    """Why the request failed; if images are the reason, which ones."""

    error: str
    skipped: list[SkippedBody] | None = None


class ModelBody(BaseModel):
    """Inputs and outputs, as defined by the protocol."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]


class ReloadBody(BaseModel):
    """The result per model; ``kept`` gives the reason why a new file could not be loaded."""

    loaded: list[str]
    unchanged: list[str]
    removed: list[str]
    kept: dict[str, str]


Responses = dict[int | str, dict[str, Any]]

_IMAGE_TYPES = "image/jpeg, image/png, image/bmp, image/tiff, image/webp"


def upload_body(max_files: int) -> dict[str, Any]:
    """Describe a form of image files."""
    files = {
        "type": "array",
        "items": {"type": "string", "format": "binary"},
        "minItems": 1,
        "maxItems": max_files,
    }
    form = {
        "schema": {"type": "object", "required": [FIELD], "properties": {FIELD: files}},
        "encoding": {FIELD: {"contentType": _IMAGE_TYPES}},
    }
    return {"requestBody": {"required": True, "content": {"multipart/form-data": form}}}


_PARAMETERS: dict[str, Any] = {
    "type": "object",
    "additionalProperties": {"anyOf": [{"type": "string"}, {"type": "number"}, {"type": "boolean"}]},
}
_SIDE = {"type": "integer", "minimum": 1}


def _list_of(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


def _input_tensor(datatype: str, shape: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["name", "shape", "datatype", "data"],
        "properties": {
            "name": {"type": "string", "enum": [INPUT]},
            "shape": {"type": "array", **shape},
            "datatype": {"type": "string", "enum": [datatype]},
            "parameters": _PARAMETERS,
            "data": data,
        },
    }


_COLOUR = {"type": "integer", "minimum": 0, "maximum": 255}
_NESTED = _list_of(_list_of(_list_of({**_list_of(_COLOUR), "minItems": 3, "maxItems": 3})))
_FILE = {"type": "string", "contentEncoding": "base64", "contentMediaType": "image/*"}
_PIXELS_SHAPE = {"prefixItems": [_SIDE] * 3 + [{"type": "integer", "enum": [3]}], "minItems": 4, "maxItems": 4}
_FILES_SHAPE = {"prefixItems": [_SIDE], "items": {"type": "integer", "enum": [1]}, "minItems": 1}
_INPUT_TENSORS = [
    _input_tensor("UINT8", _PIXELS_SHAPE, {"anyOf": [_list_of(_COLOUR), _NESTED]}),
    _input_tensor("BYTES", _FILES_SHAPE, _list_of(_FILE)),
]
_INFER_BODY: dict[str, Any] = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": ["string", "null"]},
        "parameters": _PARAMETERS,
        "inputs": {"type": "array", "minItems": 1, "maxItems": 1, "items": {"oneOf": _INPUT_TENSORS}},
        "outputs": {
            "type": ["array", "null"],
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": "string", "enum": list(Outputs._fields)}, "parameters": _PARAMETERS},
            },
        },
    },
}
INFER: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "UINT8 pixels [N, H, W, 3] RGB of any size, or BYTES [N] image files (in JSON: base64). "
        "Binary tensors follow the JSON; its length is then in the header Inference-Header-Content-Length.",
        "content": {"application/json": {"schema": _INFER_BODY}},
    }
}


def _errors(*statuses: int) -> Responses:
    return {status: {"model": ErrorBody, "description": _MEANINGS[status]} for status in statuses}


_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": KEY_HEADER},
}
_MEANINGS = {
    400: "A damaged request",
    401: "The API key is missing or wrong",
    403: "Only on a server with an API key",
    404: "No model of this name",
    408: "The request took too long to arrive",
    409: "A new file could not be loaded; the previous version, if any, still serves",
    413: "Too many bytes or too many files",
    415: "Not a multipart form",
    422: "A wrong parameter, no files, or none of them is a readable image",
    500: "The model failed on every image",
    503: "Too busy; see Retry-After",
    504: "No result in time",
}

_REFUSED_BY_FASTAPI = "Validation Error"  # FastAPI's own description of 422

PREDICT_RESPONSES: Responses = {
    200: {"model": PredictBody, "description": "Predictions; images that cannot be read are listed as skipped"},
    **_errors(400, 404, 408, 413, 415, 422, 500, 503, 504),
}
INFER_RESPONSES: Responses = {
    200: {
        "description": "Tensors, in the JSON or after it",
        "content": {"application/json": {"schema": {"type": "object"}}, "application/octet-stream": {}},
    },
    **_errors(400, 404, 408, 413, 503, 504),
    415: {"model": ErrorBody, "description": "A compressed request"},
    500: {"model": ErrorBody, "description": "The model failed on an image"},
}
MODEL_RESPONSES: Responses = _errors(404)
DESCRIBED_RESPONSES: Responses = {
    200: {"model": ModelBody, "description": "As defined by the protocol"},
    **_errors(404),
}
READY_RESPONSES: Responses = {503: {"description": "Stopping"}}
HEALTH_RESPONSES: Responses = {503: {"description": "Stopping"}}
RELOAD_RESPONSES: Responses = {
    200: {"model": ReloadBody, "description": "Done"},
    403: {"model": ErrorBody, "description": _MEANINGS[403]},
    409: {"model": ReloadBody, "description": _MEANINGS[409]},
}


def complete_description(app: FastAPI, *, locked: bool) -> None:
    """Add the errors as this server sends them, and which requests require the key.

    Args:
        app: with all its routes.
        locked: whether the server has a key.
    """
    plain = app.openapi

    def described() -> dict[str, Any]:
        description = plain()
        for path, methods in description["paths"].items():
            for operation in methods.values():
                operation["responses"].update(
                    _errors_of(operation["responses"], locked=locked and path not in PUBLIC_PATHS)
                )
                if locked:
                    operation["security"] = [] if path in PUBLIC_PATHS else [{name: []} for name in _SCHEMES]
        components = description["components"]
        if locked:
            components["securitySchemes"] = _SCHEMES
        for name in ("HTTPValidationError", "ValidationError"):
            components["schemas"].pop(name, None)
        return description

    app.openapi = described  # type: ignore[method-assign]


def _errors_of(responses: dict[str, Any], *, locked: bool) -> dict[str, Any]:
    """Return the errors that occur before a route is called: no key, and a parameter that FastAPI rejects."""
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
    errors = {"401": _MEANINGS[401]} if locked else {}
    if responses.get("422", {}).get("description") == _REFUSED_BY_FASTAPI:
        errors["422"] = "A wrong parameter"
    return {status: {"description": meaning, "content": error} for status, meaning in errors.items()}
