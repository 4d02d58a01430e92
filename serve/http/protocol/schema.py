"""The body of an inference request as a schema, for ``/openapi.json``."""

from __future__ import annotations

from typing import Any

from xfeat.export.model.interface import INPUT, THRESHOLD, Outputs
from xfeat.serve.http.openapi import request_body

HEADER_LENGTH = "Inference-Header-Content-Length"


def _list_of(item: dict[str, Any], **limits: int) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1, **limits}


def _object_with(required: list[str], **properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties}


def _input_tensor(datatype: str, shape: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    return _object_with(
        ["name", "shape", "datatype", "data"],
        name={"type": "string", "enum": [INPUT]},
        shape={"type": "array", **shape},
        datatype={"type": "string", "enum": [datatype]},
        parameters=_PARAMETERS,
        data=data,
    )


_PARAMETERS = {"type": ["object", "null"], "additionalProperties": {"type": ["string", "number", "boolean", "null"]}}
_SIDE = {"type": "integer", "minimum": 1}
_LEVEL = {"type": "integer", "minimum": 0, "maximum": 255}
_NESTED = _list_of(_list_of(_list_of(_list_of(_LEVEL, minItems=3, maxItems=3))))
_PIXELS = _input_tensor(
    "UINT8",
    {"prefixItems": [_SIDE] * 3 + [{"type": "integer", "enum": [3]}], "minItems": 4, "maxItems": 4},
    {"anyOf": [_list_of(_LEVEL), _NESTED]},
)
_FILES = _input_tensor(
    "BYTES",
    {"prefixItems": [_SIDE], "items": {"type": "integer", "enum": [1]}, "minItems": 1, "maxItems": 8},
    _list_of({"type": "string", "contentEncoding": "base64", "contentMediaType": "image/*"}),
)
_OUTPUT = _object_with(["name"], name={"type": "string", "enum": list(Outputs._fields)}, parameters=_PARAMETERS)
INFER_BODY = request_body(
    "application/json",
    {
        "schema": _object_with(
            ["inputs"],
            id={"type": ["string", "null"]},
            parameters=_PARAMETERS,
            inputs=_list_of({"oneOf": [_PIXELS, _FILES]}, maxItems=1),
            outputs={"type": ["array", "null"], "items": _OUTPUT},
        )
    },
    description="UINT8 pixels [N, H, W, 3] RGB of any size, or BYTES [N] image files (in JSON: base64). "
    f"Binary tensors follow the JSON; its length is then in the header {HEADER_LENGTH}. "
    f"The request's parameter '{THRESHOLD}', 0 to 1, replaces that of a model with a positive class.",
)


def path_parameters(address: str, model: str) -> list[dict[str, Any]]:
    """Describe the parameters of an address.

    Args:
        address: may contain ``{number}``, the version.
        model: an example of a name.
    """
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}, "example": model}
    number = {"name": "number", "in": "path", "required": True, "schema": {"type": "string", "enum": ["1"]}}
    return [name, number] if "{number}" in address else [name]
