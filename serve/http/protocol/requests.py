"""Bodies of the Open Inference Protocol, as a schema and as arrays: JSON, and binary tensors after it.

Source: https://github.com/open-inference/open-inference-protocol, specification/protocol/inference_rest.md, and the
binary tensor data extension of Triton, docs/protocol/extension_binary_data.md.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.exceptions import HTTPException
from starlette.responses import Response

from xfeat.export.model.interface import INPUT, Outputs
from xfeat.serve.http.openapi import request_body
from xfeat.serve.inference.predictor import ImageContent

HEADER_LENGTH = "Inference-Header-Content-Length"
_LENGTH_BYTES = 4


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


_PARAMETERS = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
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
    {"prefixItems": [_SIDE], "items": {"type": "integer", "enum": [1]}, "minItems": 1},
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
    f"Binary tensors follow the JSON; its length is then in the header {HEADER_LENGTH}.",
)


@dataclass(frozen=True, kw_only=True)
class InferRequest:
    """A parsed request.

    Attributes:
        id: to be returned in the response, or ``None``.
        images: contents of image files, or uint8 (H, W, 3) RGB.
        outputs: requested outputs, and whether each is wanted as binary data; ``None`` for all outputs.
        binary: whether the outputs are wanted as binary data if ``outputs`` is ``None``.
    """

    id: str | None
    images: list[ImageContent]
    outputs: dict[str, bool] | None
    binary: bool


def split_body(body: bytes, header_length: str | None) -> tuple[bytes, bytes]:
    """Return the JSON of a request, and the binary tensors after it.

    Args:
        body: both together.
        header_length: value of the header :data:`HEADER_LENGTH`; ``None`` if the body is JSON alone.

    Raises:
        HTTPException: 400 if the length is none of a part of the body.
    """
    if header_length is None:
        return body, b""
    if not re.fullmatch("[0-9]{1,15}", header_length) or int(header_length) > len(body):
        limit = f"a number up to {len(body)}, the size of the body"
        raise HTTPException(400, f"{HEADER_LENGTH} must be {limit}, not {header_length}")
    return body[: int(header_length)], body[int(header_length) :]


def parse_request(header: bytes, tail: bytes, max_images: int) -> InferRequest:
    """Parse a request.

    Args:
        header: JSON.
        tail: the binary tensors.
        max_images: most images per request.

    Raises:
        HTTPException: 413 if it has more, 400 if it violates the protocol; the message says where.
    """
    try:
        request = _object(json.loads(header), "the request")
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"not JSON: {error}") from error
    identifier = request.get("id")
    if identifier is not None and not isinstance(identifier, str):
        raise HTTPException(400, "id must be a string")
    inputs = request.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1:
        raise HTTPException(400, f"inputs must be a list of one tensor, '{INPUT}'")
    binary = _parameters(request, "the request").get("binary_data_output") is True
    return InferRequest(
        id=identifier,
        images=_parse_input(_object(inputs[0], "an input"), tail, max_images),
        outputs=_parse_outputs(request.get("outputs"), binary),
        binary=binary,
    )


def build_response(
    model: Mapping[str, Any], arrays: Mapping[str, NDArray[np.float32]], request: InferRequest
) -> Response:
    """Build a response: JSON, followed by binary tensors if any are wanted.

    Args:
        model: name and version of the model.
        arrays: float32, by output name.
        request: says which outputs are wanted as binary data.
    """
    outputs, tail = [], []
    for name, array in arrays.items():
        output: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": list(array.shape)}
        if request.binary if request.outputs is None else request.outputs[name]:
            tail.append(np.ascontiguousarray(array, "<f4").tobytes())
            output["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            output["data"] = [value if math.isfinite(value) else None for value in array.ravel().tolist()]
        outputs.append(output)
    identity = {} if request.id is None else {"id": request.id}
    header = json.dumps({**model, **identity, "outputs": outputs}).encode()
    if not tail:
        return Response(header, media_type="application/json")
    headers = {HEADER_LENGTH: str(len(header))}
    return Response(b"".join([header, *tail]), headers=headers, media_type="application/octet-stream")


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise HTTPException(400, f"{what} must be a JSON object")
    return value


def _parameters(owner: dict[str, Any], what: str) -> dict[str, str | int | float | bool]:
    parameters = _object(owner.get("parameters", {}), f"parameters of {what}")
    for name, value in parameters.items():
        if not isinstance(value, str | int | float | bool):
            raise HTTPException(400, f"parameter {name!r} of {what} must be a string, a number or a boolean")
    return parameters


def _parse_outputs(outputs: Any, binary: bool) -> dict[str, bool] | None:
    if outputs is None or outputs == []:
        return None
    if not isinstance(outputs, list):
        raise HTTPException(400, "outputs must be a list")
    wanted = {}
    for output in outputs:
        name = _object(output, "an output").get("name")
        parameters = _parameters(output, "an output")
        if not isinstance(name, str):
            raise HTTPException(400, "an output needs a name")
        if "classification" in parameters:
            raise HTTPException(400, "the classification extension is not supported: ask for probabilities")
        wanted[name] = parameters.get("binary_data", binary) is True
    return wanted


def _parse_input(tensor: dict[str, Any], tail: bytes, max_images: int) -> list[ImageContent]:
    name, datatype, shape = (tensor.get(key) for key in ("name", "datatype", "shape"))
    if name != INPUT:
        raise HTTPException(400, f"no input called {name!r}; this model has: {INPUT}")
    if not isinstance(shape, list) or not all(type(axis) is int and axis > 0 for axis in shape):
        raise HTTPException(400, "shape must be a list of positive integers")
    if shape and shape[0] > max_images:
        raise HTTPException(413, f"more than {max_images} images in one request")
    size = _parameters(tensor, "an input").get("binary_data_size")
    if size is not None and (type(size) is not int or size != len(tail)):
        raise HTTPException(400, f"binary_data_size is {size}, but {len(tail)} bytes follow the JSON")
    if size is None and tail:
        raise HTTPException(400, f"{len(tail)} bytes follow the JSON, but no tensor has binary_data_size")
    data = tail if size is not None else tensor.get("data")
    if datatype == "UINT8":
        return list(_pixels(data, shape))
    if datatype == "BYTES":
        return list(_files(data, shape))
    raise HTTPException(400, f"datatype of '{INPUT}' must be UINT8 (pixels) or BYTES (image files), not {datatype!r}")


def _pixels(data: Any, shape: list[int]) -> NDArray[np.uint8]:
    if len(shape) != 4 or shape[3] != 3:
        raise HTTPException(400, f"UINT8 pixels must have shape [N, H, W, 3], not {shape}")
    array = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else _from_numbers(data)
    if array.size != math.prod(shape):
        raise HTTPException(400, f"shape {shape} has {math.prod(shape)} elements, but the data has {array.size}")
    return array.reshape(shape)


def _from_numbers(data: Any) -> NDArray[np.uint8]:
    try:
        given = np.asarray(data if isinstance(data, list) else None)
    except ValueError as error:
        raise HTTPException(400, "data must be a list of numbers, flat or nested like the shape") from error
    if given.dtype.kind not in "iu" or given.min() < 0 or given.max() > 255 or _has_booleans(data):
        raise HTTPException(400, "data must be integers from 0 to 255")
    return given.astype(np.uint8)


def _has_booleans(data: list[Any]) -> bool:
    """Return whether a regularly nested list holds true or false, which numpy would convert to 1 and 0."""
    while isinstance(data[0], list):
        data = list(itertools.chain.from_iterable(data))
    return bool in set(map(type, data))


def _files(data: Any, shape: list[int]) -> list[bytes]:
    files = _split(data, math.prod(shape)) if isinstance(data, bytes) else _from_base64(data)
    if len(files) != math.prod(shape) or shape[:1] != [len(files)]:
        raise HTTPException(400, f"shape must be [{len(files)}], the number of image files, not {shape}")
    return files


def _split(data: bytes, expected: int) -> list[bytes]:
    """Split at the length prefixes. It stops at one file more than expected, which is enough for an error."""
    files: list[bytes] = []
    at = 0
    while at < len(data) and len(files) <= expected:
        start = at + _LENGTH_BYTES
        at = start + int.from_bytes(data[at:start], "little")
        if start > len(data) or at > len(data):
            raise HTTPException(400, "the lengths in a BYTES tensor do not add up to its size")
        files.append(data[start:at])
    return files


def _from_base64(data: Any) -> list[bytes]:
    if not isinstance(data, list) or not all(isinstance(text, str) for text in data):
        raise HTTPException(400, "BYTES data in JSON must be a list of strings: image files in base64")
    try:
        return [base64.b64decode(text, validate=True) for text in data]
    except (binascii.Error, ValueError) as error:
        raise HTTPException(400, f"BYTES data in JSON must be base64: {error}") from error
