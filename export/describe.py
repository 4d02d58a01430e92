"""Describes the content of a model file."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from xfeat.export.model.file import ModelFile, open_model
from xfeat.export.parity.certificate import matching_certificate
from xfeat.featurize.errors import XfeatError


def describe_model(path: Path) -> dict[str, Any]:
    """Return the content of a model file, as plain JSON types.

    Raises:
        ModelError: if it was not written by this project.
    """
    import onnx

    model = open_model(path)
    content = model.read()
    proto = onnx.load_from_string(content)
    graph = proto.graph
    metadata = model.metadata
    return {
        "model": str(path),
        "bytes": len(content),
        "sha256": model.sha256,
        "certificate": _certificate_state(model),
        **metadata.to_dict(),
        "feature_fingerprint": metadata.feature_spec.fingerprint,
        "inputs": _tensors(model.session.get_inputs()),
        "outputs": _tensors(model.session.get_outputs()),
        "opset": proto.opset_import[0].version,
        "parameters": sum(math.prod(tensor.dims) for tensor in graph.initializer),
        "operators": dict(Counter(node.op_type for node in graph.node).most_common()),
    }


def _certificate_state(model: ModelFile) -> str:
    try:
        return "matches this file" if matching_certificate(model) else "none beside the model"
    except XfeatError as error:
        return error.what


def _tensors(nodes: list[Any]) -> list[dict[str, Any]]:
    return [{"name": node.name, "type": node.type, "shape": list(node.shape)} for node in nodes]
