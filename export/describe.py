"""Describes the content of a model file. Needs onnxruntime, and neither onnx nor torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xfeat.export.model.file import INTACT_COPY, ModelFile, open_model
from xfeat.export.model.graph_summary import summarize_graph
from xfeat.export.parity.certificate import matching_certificate
from xfeat.featurize.errors import ModelError, XfeatError


def describe_model(path: Path) -> dict[str, Any]:
    """Return the content of a model file, as plain JSON types.

    Raises:
        ModelError: if it was not written by this project.
    """
    model = open_model(path)
    content = model.read()
    try:
        graph = summarize_graph(content)
    except ValueError as error:
        raise ModelError("the file's graph cannot be read", path=path, found=str(error), fix=INTACT_COPY) from error
    metadata = model.metadata
    return {
        "model": str(path),
        "bytes": len(content),
        "sha256": model.sha256,
        "certificate": _certificate_state(model),
        **metadata.to_dict(),
        "feature_fingerprint": metadata.feature_spec.fingerprint,
        "inputs": _tensors(model.session.get_inputs()),
        "optional_inputs": _tensors(model.session.get_overridable_initializers()),
        "outputs": _tensors(model.session.get_outputs()),
        "opset": graph.opset,
        "parameters": graph.parameters,
        "operators": graph.operators,
    }


def _certificate_state(model: ModelFile) -> str:
    try:
        return "matches this file" if matching_certificate(model) else "none beside the model"
    except XfeatError as error:
        return error.what


def _tensors(nodes: list[Any]) -> list[dict[str, Any]]:
    return [{"name": node.name, "type": node.type, "shape": list(node.shape)} for node in nodes]
