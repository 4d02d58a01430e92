"""Requests of the Open Inference Protocol: JSON, and binary tensors after it.

Source: https://github.com/open-inference/open-inference-protocol, specification/protocol/inference_rest.md, and the
extensions of Triton for binary tensor data and classification, docs/protocol/extension_binary_data.md and
extension_classification.md.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.exceptions import HTTPException

from xfeat.export.model.interface import INPUT, THRESHOLD
from xfeat.serve.http.protocol.json_body import LongValues, parse_json, read_base64, read_levels
from xfeat.serve.http.protocol.schema import HEADER_LENGTH
from xfeat.serve.inference.reading import ImageContent

_LENGTH_BYTES = 4
_MAX_AXES = 8
_MAX_AXIS = 65_535  # as in JPEG; resizing takes memory in proportion to the longer side
_LAYOUT = "UINT8 pixels must have shape [N, H, W, 3]: whole numbers from 0 to 255, RGB"


@dataclass(frozen=True, kw_only=True)
class WantedOutput:
    """The form of an output.

    Attributes:
        binary: whether it is wanted as binary data.
        classes: if more than 0, it is wanted as so many texts ``value:index:class``, the largest values first.
    """

    binary: bool
    classes: int = 0


@dataclass(frozen=True, kw_only=True)
class InferRequest:
    """A parsed request.

    Attributes:
        id: to be returned in the response, or ``None``.
        images: contents of image files, or uint8 (H, W, 3) RGB.
        outputs: requested outputs and their forms; ``None`` for all outputs.
        binary: whether the outputs are wanted as binary data if ``outputs`` is ``None``.
        threshold: for the output ``decision``, instead of the model's own; ``None`` for that.
    """

    id: str | None
    images: list[ImageContent]
    outputs: dict[str, WantedOutput] | None
    binary: bool
    threshold: float | None = None


def split_body(body: bytes, header_length: str | None) -> tuple[bytes, memoryview]:
    """Return the JSON of a request, and the binary tensors after it.

    Args:
        body: both together.
        header_length: value of the header :data:`HEADER_LENGTH`; ``None`` if the body is JSON alone.

    Raises:
        HTTPException: 400 if the length is none of a part of the body.
    """
    if header_length is None:
        return body, memoryview(b"")
    if not re.fullmatch("[0-9]{1,15}", header_length) or int(header_length) > len(body):
        limit = f"a number up to {len(body)}, the size of the body"
        raise HTTPException(400, f"{HEADER_LENGTH} must be {limit}, not {header_length[:100]}")
    return body[: int(header_length)], memoryview(body)[int(header_length) :]


def parse_request(header: bytes, tail: memoryview, max_images: int) -> InferRequest:
    """Parse a request. A field that is null counts as absent, as clients with typed objects write it.

    Args:
        header: JSON.
        tail: the binary tensors.
        max_images: most images per request.

    Raises:
        HTTPException: 413 if it has more, 400 if it violates the protocol; the message says where.
    """
    parsed, long = parse_json(header)
    request = _object(parsed, "the request")
    identifier = request.get("id")
    if identifier is not None and (not isinstance(identifier, str) or identifier in long):
        raise HTTPException(400, "id must be a string of at most 64 KiB")
    inputs = request.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1:
        raise HTTPException(400, f"inputs must be a list of one tensor, '{INPUT}'")
    parameters = _parameters(request, "the request")
    binary = parameters.get("binary_data_output") is True
    threshold = parameters.get(THRESHOLD)
    if threshold is not None and not (type(threshold) in (int, float) and 0 <= float(threshold) <= 1):
        raise HTTPException(400, f"parameter '{THRESHOLD}' must be a number from 0 to 1, not {_short(threshold)}")
    return InferRequest(
        id=identifier,
        images=_parse_input(_object(inputs[0], "an input"), long, tail, max_images),
        outputs=_parse_outputs(request.get("outputs"), binary),
        binary=binary,
        threshold=None if threshold is None else float(threshold),
    )


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise HTTPException(400, f"{what} must be a JSON object")
    return value


def _parameters(owner: dict[str, Any], what: str) -> dict[str, str | int | float | bool]:
    given = owner.get("parameters")
    parameters = {} if given is None else _object(given, f"parameters of {what}")
    for name, value in parameters.items():
        if not isinstance(value, str | int | float | bool | None):
            raise HTTPException(400, f"parameter {name[:100]!r} of {what} must be a string, a number or a boolean")
        if name.startswith("shared_memory"):
            raise HTTPException(400, "shared memory is not supported: send the tensors in the request")
    return {name: value for name, value in parameters.items() if value is not None}


def _parse_outputs(outputs: Any, binary: bool) -> dict[str, WantedOutput] | None:
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
        classes = parameters.get("classification", 0)
        if type(classes) is not int or not 0 <= classes <= _MAX_AXIS:
            raise HTTPException(400, "parameter 'classification' of an output must be the number of classes to return")
        wanted[name] = WantedOutput(binary=parameters.get("binary_data", binary) is True, classes=classes)
    return wanted


def _parse_input(tensor: dict[str, Any], long: LongValues, tail: memoryview, max_images: int) -> list[ImageContent]:
    name, datatype, shape = (tensor.get(key) for key in ("name", "datatype", "shape"))
    if name != INPUT:
        raise HTTPException(400, f"no input called {_short(name)}; this model has: {INPUT}")
    if not isinstance(shape, list) or not all(type(axis) is int and 0 < axis <= _MAX_AXIS for axis in shape):
        raise HTTPException(400, f"shape must be a list of integers from 1 to {_MAX_AXIS}")
    if len(shape) > _MAX_AXES:
        raise HTTPException(400, f"shape must have at most {_MAX_AXES} axes, not {len(shape)}")
    if shape and shape[0] > max_images:
        raise HTTPException(413, f"more than {max_images} images in one request")
    size = _parameters(tensor, "an input").get("binary_data_size")
    if size is not None and (type(size) is not int or size != len(tail)):
        raise HTTPException(400, f"binary_data_size is {_short(size)}, but {len(tail)} bytes follow the JSON")
    if size is None and tail:
        raise HTTPException(400, f"{len(tail)} bytes follow the JSON, but no tensor has binary_data_size")
    data = tail if size is not None else tensor.get("data")
    if datatype == "UINT8":
        return list(_pixels(data, long, shape))
    if datatype == "BYTES":
        return list(_files(data, long, shape))
    hint = f"; {_LAYOUT}" if datatype in ("FP32", "FP64", "FP16", "INT8", "INT32", "INT64") else ""
    raise HTTPException(
        400, f"datatype of '{INPUT}' must be UINT8 (pixels) or BYTES (image files), not {_short(datatype)}{hint}"
    )


def _short(value: Any) -> str:
    return repr(value)[:100] if not isinstance(value, int) or abs(value) < 10**20 else "a number of over 20 digits"


def _pixels(data: Any, long: LongValues, shape: list[int]) -> NDArray[np.uint8]:
    if len(shape) != 4 or shape[3] != 3:
        hint = "; transpose from [N, 3, H, W]" if len(shape) == 4 and shape[1] == 3 else ""
        raise HTTPException(400, f"{_LAYOUT}, not shape {shape}{hint}")
    array = np.frombuffer(data, np.uint8) if isinstance(data, memoryview) else read_levels(data, long, shape)
    if array.size != math.prod(shape):
        raise HTTPException(400, f"shape {shape} has {math.prod(shape)} elements, but the data has {array.size}")
    return array.reshape(shape)


def _files(data: Any, long: LongValues, shape: list[int]) -> list[bytes]:
    number = math.prod(shape)
    files = _split(data, number) if isinstance(data, memoryview) else _texts(data)
    if len(files) != number or shape[:1] != [number]:
        raise HTTPException(400, f"shape must be [{len(files)}], the number of image files, not {shape}")
    return [file if isinstance(file, bytes) else read_base64(file, long) for file in files]


def _split(data: memoryview, expected: int) -> list[bytes]:
    """Split at the length prefixes. It stops at one file more than expected, which is enough for an error."""
    files: list[bytes] = []
    at = 0
    while at < len(data) and len(files) <= expected:
        start = at + _LENGTH_BYTES
        at = start + int.from_bytes(data[at:start], "little")
        if start > len(data) or at > len(data):
            raise HTTPException(400, "the lengths in a BYTES tensor do not add up to its size")
        files.append(bytes(data[start:at]))
    return files


def _texts(data: Any) -> list[str]:
    """Return the strings of a list, flat or nested, or of one string."""
    texts = [data] if isinstance(data, str) else data
    while isinstance(texts, list) and texts and all(isinstance(each, list) for each in texts):
        texts = list(itertools.chain.from_iterable(texts))
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise HTTPException(400, "BYTES data in JSON must be a list of strings: image files in base64")
    return texts
