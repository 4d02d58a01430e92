"""The shapes of requests and answers, for ``/openapi.json``."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from serve.uploads import FIELD


class PredictionBody(BaseModel):
    """The answer to one image."""

    path: str = Field(description="The name the file was sent under")
    label: str = Field(description="The class decided on, by the model's threshold if it has one")
    probabilities: dict[str, float] = Field(description="Of each class, adding up to 1")
    ood: float | None = Field(description="Distance from the training images, if the model measures it")


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


UPLOAD: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "properties": {FIELD: {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            }
        },
    }
}

PREDICT_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"model": PredictBody, "description": "Answers; unreadable images are listed as skipped"},
    408: {"model": ErrorBody, "description": "The request took too long to arrive"},
    413: {"model": ErrorBody, "description": "Too many bytes or too many files"},
    415: {"model": ErrorBody, "description": "Not a multipart form"},
    422: {"model": ErrorBody, "description": "No files, or none of them is a readable image"},
    500: {"model": ErrorBody, "description": "The model failed on every image"},
    503: {"model": ErrorBody, "description": "The queue is full; see Retry-After"},
}
