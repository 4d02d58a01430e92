"""Responses of the Open Inference Protocol: JSON, and binary tensors after it."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.exceptions import HTTPException
from starlette.responses import Response

from xfeat.serve.http.protocol.requests import InferRequest, WantedOutput
from xfeat.serve.http.protocol.schema import HEADER_LENGTH

# Outputs with one value per class, which can be sorted.
_OF_CLASSES = {"probabilities", "logits"}
_PIECE = 1 << 14  # numbers per call of json.dumps, which holds the interpreter's lock; takes about 20 ms


def check_outputs(wanted: Mapping[str, WantedOutput], available: Collection[str]) -> None:
    """Check that a model has the requested outputs in their forms.

    Raises:
        HTTPException: 400 if not.
    """
    for name, form in wanted.items():
        if name not in available:
            has = ", ".join(sorted(available))
            raise HTTPException(400, f"no output called {name[:100]!r}; this model has: {has}")
        if form.classes and name not in _OF_CLASSES:
            has = ", ".join(sorted(_OF_CLASSES & set(available)))
            raise HTTPException(400, f"'{name}' has no value per class; classification is for: {has}")


def build_response(
    model: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
    request: InferRequest,
    class_names: Sequence[str],
) -> Response:
    """Build a response: JSON, followed by binary tensors if any are wanted.

    Args:
        model: name and version of the model.
        arrays: float32 or int64, by output name.
        request: says which outputs are wanted as binary data, or as classes.
        class_names: in the model's order.
    """
    outputs, tail = [], []
    for name, array in arrays.items():
        form = WantedOutput(binary=request.binary) if request.outputs is None else request.outputs[name]
        texts = _largest(array, form.classes, class_names) if form.classes else None
        shape = list(array.shape) if texts is None else [len(array), len(texts) // len(array)]
        datatype = "BYTES" if texts is not None else "INT64" if array.dtype == np.int64 else "FP32"
        output: dict[str, Any] = {"name": name, "datatype": datatype, "shape": shape}
        if form.binary:
            tail.append(_as_binary(array) if texts is None else _with_lengths(texts))
            output["parameters"] = {"binary_data_size": len(tail[-1])}
            outputs.append(json.dumps(output))
        else:
            data = ", ".join(_numbers(array) if texts is None else map(json.dumps, texts))
            outputs.append(f'{json.dumps(output)[:-1]}, "data": [{data}]}}')
    identity = {} if request.id is None else {"id": request.id}
    header = f'{json.dumps({**model, **identity})[:-1]}, "outputs": [{", ".join(outputs)}]}}'.encode()
    if not tail:
        return Response(header, media_type="application/json")
    headers = {HEADER_LENGTH: str(len(header))}
    return Response(b"".join([header, *tail]), headers=headers, media_type="application/octet-stream")


def _largest(array: NDArray[np.float32], number: int, class_names: Sequence[str]) -> list[str]:
    """Return the largest values of each row as ``value:index:class``, with the digits that Triton writes."""
    return [
        f"{row[place]:.6f}:{place}:{class_names[place]}"
        for row in array
        for place in np.argsort(-row, kind="stable")[:number]
    ]


def _numbers(array: NDArray[Any]) -> Iterator[str]:
    flat = array.ravel()
    for start in range(0, flat.size, _PIECE):
        values = flat[start : start + _PIECE].tolist()
        yield json.dumps([value if math.isfinite(value) else None for value in values])[1:-1]


def _as_binary(array: NDArray[Any]) -> bytes:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()


def _with_lengths(texts: Sequence[str]) -> bytes:
    return b"".join(len(text).to_bytes(4, "little") + text for text in (each.encode() for each in texts))
