"""Schemas of responses, and of what all routes share, for ``/openapi.json``. Those of bodies are with their readers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, Field

from xfeat.serve.http.access import KEY_HEADER, PUBLIC_PATHS


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
        default=None,
        description="If requested: a PNG in base64, to be stretched over the image, or, if the model cuts images (crop "
        "and resize of GET /model), over the part that is left",
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


Responses = dict[int | str, dict[str, Any]]

_MEANINGS = {
    400: "A damaged request",
    403: "Only on a server with an API key",
    404: "No model of this name",
    408: "The request took too long to arrive",
    413: "Too many bytes or too many files",
    503: "Too busy; see Retry-After",
    504: "No result in time",
}
STOPPING: Responses = {503: {"description": "Stopping"}}

_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": KEY_HEADER},
}


def errors(*statuses: int, special: Mapping[int, str] | None = None) -> Responses:
    """Describe the error responses of a route.

    Args:
        statuses: those with their usual meaning.
        special: further ones, with their meanings.
    """
    meanings = {status: _MEANINGS[status] for status in statuses} | dict(special or {})
    return {status: {"model": ErrorBody, "description": meaning} for status, meaning in meanings.items()}


def request_body(media_type: str, content: dict[str, Any], **more: str) -> dict[str, Any]:
    """Return the part of an operation that describes its body, for a route's ``openapi_extra``."""
    return {"requestBody": {"required": True, "content": {media_type: content}, **more}}


def describe_key(app: FastAPI) -> None:
    """Add to the description which requests require the API key, and what they are answered without it."""
    plain = app.openapi
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}

    def described() -> dict[str, Any]:
        description = plain()
        description["components"]["securitySchemes"] = _SCHEMES
        for path, methods in description["paths"].items():
            for operation in methods.values():
                operation["security"] = [] if path in PUBLIC_PATHS else [{name: []} for name in _SCHEMES]
                if path not in PUBLIC_PATHS:
                    operation["responses"]["401"] = {"description": "The API key is missing or wrong", "content": error}
        return description

    app.openapi = described  # type: ignore[method-assign]
