"""Operators, weights and opset of an ONNX file, read without the package onnx, which a server does not have."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

# Source: onnx/onnx.proto (fields) and protobuf's "Encoding" (wire types).
_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
_MODEL_GRAPH, _MODEL_OPSET, _OPSET_DOMAIN, _OPSET_VERSION = 7, 8, 1, 2
_GRAPH_NODE, _GRAPH_INITIALIZER, _NODE_OPERATOR, _TENSOR_DIMS = 1, 5, 4, 1


@dataclass(frozen=True, kw_only=True)
class GraphSummary:
    """What a graph consists of.

    Attributes:
        opset: version of ONNX's own operators.
        parameters: numbers in the stored tensors.
        operators: name to number of nodes, the most frequent first.
    """

    opset: int
    parameters: int
    operators: dict[str, int]


def summarize_graph(content: bytes) -> GraphSummary:
    """Count operators and weights.

    Args:
        content: of an ONNX file.

    Raises:
        ValueError: if it is no ONNX file.
    """
    opset, operators, parameters = 0, Counter[str](), 0
    for field, value in _fields(memoryview(content)):
        if field == _MODEL_OPSET:
            entry = dict(_fields(_message(value)))
            if not entry.get(_OPSET_DOMAIN):
                opset = int(entry.get(_OPSET_VERSION, 0))
        elif field == _MODEL_GRAPH:
            for part, inner in _fields(_message(value)):
                if part == _GRAPH_NODE:
                    operators.update(_text(name) for at, name in _fields(_message(inner)) if at == _NODE_OPERATOR)
                elif part == _GRAPH_INITIALIZER:
                    parameters += math.prod(_dims(_message(inner)))
    return GraphSummary(opset=opset, parameters=parameters, operators=dict(operators.most_common()))


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value of each field: an integer, or the bytes of a text, a message or a list."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        field, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield field, value
            continue
        if kind == _BYTES:
            length, at = _varint(message, at)
        elif kind in (_FIXED_64, _FIXED_32):
            length = 8 if kind == _FIXED_64 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if at + length > len(message):
            raise ValueError("a field is longer than the file")
        yield field, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for place, byte in enumerate(message[at : at + 10]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    raise ValueError("a number without an end")


def _dims(tensor: memoryview) -> Iterator[int]:
    for field, value in _fields(tensor):
        if field == _TENSOR_DIMS:
            at = 0
            if isinstance(value, int):
                yield value
                continue
            while at < len(value):
                number, at = _varint(value, at)
                yield number


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number in place of a message")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_message(value)).decode(errors="replace")
