"""The shapes of requests and answers, for ``/openapi.json``."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, Field

from xfeat.serve.http.api_key import KEY_HEADER, OPEN
from xfeat.serve.http.uploads import FIELD
from xfeat.serve.inference.session import INPUT, Outputs


class PredictionBody(BaseModel):
    """The answer to one image."""

    path: str = Field(description="The name the file was sent under")
    label: str = Field(description="The class decided on, by the model's threshold if it has one")
    probabilities: dict[str, float] = Field(description="Of each class, adding up to 1")
    ood: float | None = Field(description="Distance from the training images, if the model measures it")
    ood_threshold: float | None = Field(description="The distance from which an image counts as foreign")
    in_distribution: bool | None = Field(description="Whether the image resembles the training images, if known")
    heatmap: str | None = Field(
        default=None, description="If asked for: a PNG in base64 to lay over the image, where the network looked"
    )


class SkippedBody(BaseModel):
    """An image without an answer."""

    path: str
    reason: str


class PredictBody(BaseModel):
    """The answers to one request, in the order of its files."""

    model: str
    predictions: list[PredictionBody]
    skipped: list[SkippedBody]


class ErrorBody(BaseModel):
    """Why there is no answer; where images are the reason, which."""

    error: str
    skipped: list[SkippedBody] | None = None


class ModelBody(BaseModel):
    """Inputs and outputs, as the protocol describes them."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]


class ReloadBody(BaseModel):
    """What became of each model; ``kept`` gives the reason why a new file cannot be used."""

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
        "Binary tensors follow the JSON, whose length is then in the header Inference-Header-Content-Length.",
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
    403: "Not without an API key on the server",
    404: "No model of this name",
    408: "The request took too long to arrive",
    409: "A new file cannot be used; the old model answers on",
    413: "Too many bytes or too many files",
    415: "Not a multipart form",
    422: "A wrong parameter, no files, or none of them is a readable image",
    500: "The model failed on every image",
    503: "Too busy; see Retry-After",
    504: "No answer in time",
}

_REFUSED_BY_FASTAPI = "Validation Error"  # what it puts where a route says nothing itself

PREDICT_RESPONSES: Responses = {
    200: {"model": PredictBody, "description": "Answers; unreadable images are listed as skipped"},
    **_errors(400, 404, 408, 413, 415, 422, 500, 503, 504),
}
INFER_RESPONSES: Responses = {
    200: {
        "description": "Tensors, in JSON or behind it",
        "content": {"application/json": {"schema": {"type": "object"}}, "application/octet-stream": {}},
    },
    **_errors(400, 404, 408, 413, 415, 500, 503, 504),
}
MODEL_RESPONSES: Responses = _errors(404)
DESCRIBED_RESPONSES: Responses = {200: {"model": ModelBody, "description": "As the protocol says"}, **_errors(404)}
READY_RESPONSES: Responses = {503: {"description": "Stopping"}}
HEALTH_RESPONSES: Responses = {503: {"description": "Stopping"}}
RELOAD_RESPONSES: Responses = {
    200: {"model": ReloadBody, "description": "Done"},
    403: {"model": ErrorBody, "description": _MEANINGS[403]},
    409: {"model": ReloadBody, "description": _MEANINGS[409]},
}


def complete_description(app: FastAPI, *, locked: bool) -> None:
    """Describe errors as this server sends them, and which requests need the key.

    Args:
        app: with all its routes.
        locked: the server has a key.
    """
    plain = app.openapi

    def described() -> dict[str, Any]:
        description = plain()
        for path, methods in description["paths"].items():
            for operation in methods.values():
                operation["responses"].update(_errors_of(operation["responses"], locked=locked and path not in OPEN))
                if locked:
                    operation["security"] = [] if path in OPEN else [{name: []} for name in _SCHEMES]
        components = description["components"]
        if locked:
            components["securitySchemes"] = _SCHEMES
        for name in ("HTTPValidationError", "ValidationError"):
            components["schemas"].pop(name, None)
        return description

    app.openapi = described  # type: ignore[method-assign]


def _errors_of(responses: dict[str, Any], *, locked: bool) -> dict[str, Any]:
    """Return the errors that come before a route is asked: no key, and a parameter that FastAPI refuses."""
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
    errors = {"401": _MEANINGS[401]} if locked else {}
    if responses.get("422", {}).get("description") == _REFUSED_BY_FASTAPI:
        errors["422"] = "A wrong parameter"
    return {status: {"description": meaning, "content": error} for status, meaning in errors.items()}
